"""The shipped column maps on synthetic studies in the exact published layouts, through the command line."""

import contextlib
import csv
import inspect
import io
import json
from pathlib import Path

import datasets
import pytest
import yaml
from PIL import Image

from mrg.cli import main
from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.table import Columns, TableDataModule

CONFIGS = Path(__file__).parents[3] / "configs"

CHEXPERT_PLUS = """
path_to_image path_to_dcm frontal_lateral ap_pa deid_patient_id patient_report_date_order report section_narrative
section_clinical_history section_history section_comparison section_technique section_procedure_comments
section_findings section_impression section_end_of_impression section_summary section_accession_number
age sex race ethnicity interpreter_needed insurance_type recent_bmi deceased split
""".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def composed(*configs):
    """What the command line makes of several configuration files."""
    out = io.StringIO()
    files = [f"--config={CONFIGS / config}" for config in configs]
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stop:
        main(["fit", *files, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(out.getvalue())


def table_module(config, root):
    settings = composed("iu.yaml", f"data/{config}.yaml")["data"]
    assert settings["class_path"] == "mrg.datamodules.table.TableDataModule"
    given = {**settings["init_args"], "root": str(root), "columns": Columns(**settings["init_args"]["columns"])}
    return TableDataModule(**given)


def draw(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), 90).save(file)


def write_chexpert_plus(root):
    """Two patients to train on and one in `valid`; a study of two views, one without findings, one too short."""
    views = [
        ("train", "patient00001", 1, 1, "Frontal", "\nLarge heart and small\neffusion.\n", " Cough.\n"),
        ("train", "patient00001", 1, 2, "Lateral", "\nLarge heart and small\neffusion.\n", " Cough.\n"),
        ("train", "patient00001", 2, 1, "Frontal", "", ""),
        ("train", "patient00002", 1, 1, "Frontal", "Clear.", ""),
        ("train", "patient00003", 1, 1, "Frontal", "The lungs are clear.", ""),
        ("valid", "patient64545", 1, 1, "Frontal", "No pneumothorax is seen.", ""),
    ]
    with (root / "df_chexpert_plus_240401.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, CHEXPERT_PLUS, restval="")
        writer.writeheader()
        for split, patient, study, view, position, findings, history in views:
            path = f"{split}/{patient}/study{study}/view{view}_{position.lower()}"
            draw(root / "PNG" / f"{path}.png")
            writer.writerow(
                {
                    "path_to_image": f"{path}.jpg",
                    "path_to_dcm": f"{path}.dcm",
                    "frontal_lateral": position,
                    "deid_patient_id": patient,
                    "patient_report_date_order": study,
                    "report": "FINAL REPORT, with all sections",
                    "section_findings": findings,
                    "section_clinical_history": history,
                    "section_impression": "1. NO CHANGE.",
                    "split": split,
                }
            )


def test_chexpert_plus(tmp_path):
    write_chexpert_plus(tmp_path)
    data = table_module("chexpert_plus", tmp_path)
    splits = data.read()
    assert {name: [study.id for study in part] for name, part in splits.items()} == {
        "train": ["patient00001_study1", "patient00003_study1"],
        "val": [],
        "test": ["patient64545_study1"],
    }
    study = splits["train"][0]
    assert (study.patient, study.report, study.indication) == (
        "patient00001",
        "Large heart and small\neffusion.",
        "Cough.",
    )
    assert [(view.image.name, view.position) for view in study.views] == [
        ("view1_frontal.png", "frontal"),
        ("view2_lateral.png", "lateral"),
    ]
    assert data.removed == {
        "a split that is skipped": 0,
        "an empty report": 1,
        "fewer than 3 words in the report": 1,
    }


def write_rexgradient(root):
    """One study in each split: metadata by id, paths relative to the folder of the metadata."""
    for split, positions in (("train", ["PA", "LATERAL"]), ("valid", [None]), ("test", ["POSTERO_ANTERIOR"])):
        key = f"pGRDN{split}_aGRDN1_s1.2.826"
        paths = [
            f"../deid_png/GRDN{split}/GRDN1/studies/1.2.826/series/1.2/instances/{k}.png" for k in range(len(positions))
        ]
        entry = {
            "PatientID": f"GRDN{split}",
            "AccessionNumber": "GRDN1",
            "StudyInstanceUid": "1.2.826",
            "PatientSex": "F",
            "PatientAge": "036Y",
            "EthnicGroup": None,
            "StudyDate": 20200101,
            "Indication": "Cough" if split == "train" else None,
            "Comparison": "None",
            "Findings": f"The lungs of {split} are clear.",
            "Impression": float("nan"),
            "ImagePath": paths,
            "ImageViewPosition": positions,
            "ImageShape": [[800, 700]] * len(paths),
        }
        empty = {**entry, "Findings": "None", "PatientID": "other"}
        file = root / "metadata" / f"{split}_metadata_view_position.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({key: entry, f"{key}.2": empty}))
        for path in paths:
            draw((root / "metadata" / path).resolve())


def test_rexgradient(tmp_path):
    write_rexgradient(tmp_path)
    data = table_module("rexgradient", tmp_path)
    splits = data.read()
    assert {name: [study.report for study in part] for name, part in splits.items()} == {
        "train": ["The lungs of train are clear."],
        "val": ["The lungs of valid are clear."],
        "test": ["The lungs of test are clear."],
    }
    study = splits["train"][0]
    assert (study.id, study.patient, study.indication) == ("pGRDNtrain_aGRDN1_s1.2.826", "GRDNtrain", "Cough")
    assert [view.position for view in study.views] == ["frontal", "lateral"]
    assert [part[0].views[0].position for part in splits.values()] == ["frontal", "", "frontal"]
    assert all(view.load().size == (8, 8) for view in study.views)
    assert data.removed["an empty report"] == 3


@pytest.mark.parametrize("config", ["table", "chexpert_plus", "rexgradient"])
def test_a_data_configuration_replaces_the_data_and_nothing_else(config):
    alone, both = composed("iu.yaml"), composed("iu.yaml", f"data/{config}.yaml")
    assert both["name"] == config
    assert both["model"] == alone["model"]
    assert both["trainer"] == alone["trainer"]
    assert not {"variant", "annotation", "deidentified"} & set(both["data"]["init_args"])


def test_the_example_names_every_setting():
    shown = yaml.safe_load((CONFIGS / "data" / "table.yaml").read_text())["data"]["init_args"]
    whole = composed("iu.yaml", "data/table.yaml")["data"]["init_args"]
    of_all_data = set(inspect.signature(ReportDataModule).parameters)
    assert set(shown) == set(whole) - of_all_data
    assert set(shown["columns"]) == set(whole["columns"])


def test_a_split_that_is_in_use_and_empty_is_one_line(tmp_path, capsys):
    """Whoever makes everything test has nothing to validate on."""
    write_chexpert_plus(tmp_path)
    files = ["iu.yaml", "data/chexpert_plus.yaml", "baselines/constant_normal.yaml"]
    options = [f"--data.init_args.root={tmp_path}", "--data.init_args.split=test", "--data.init_args.split_names=null"]
    with pytest.raises(SystemExit) as stop:
        main(["validate", *(f"--config={CONFIGS / file}" for file in files), *options, f"--runs={tmp_path / 'runs'}"])
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(
        "mrg: There are no studies to load: TableDataModule (train 0, val 0, test 3) from df_chexpert"
    )


def test_a_baseline_is_tested_on_a_published_table(tmp_path, capsys):
    write_chexpert_plus(tmp_path)
    files = ["iu.yaml", "data/chexpert_plus.yaml", "baselines/nearest_image.yaml"]
    main(
        [
            "test",
            *(f"--config={CONFIGS / file}" for file in files),
            f"--data.init_args.root={tmp_path}",
            "--data.init_args.num_workers=0",
            f"--runs={tmp_path / 'runs'}",
            "--trainer.accelerator=cpu",
            "--trainer.precision=32-true",
            "--trainer.enable_progress_bar=false",
        ]
    )
    assert "most frequent report" in capsys.readouterr().out
    row = json.loads((tmp_path / "runs" / "nearest_image" / "predictions.jsonl").read_text())
    assert row["id"] == "patient64545_study1"
    assert row["prediction"] == "Large heart and small\neffusion."  # of equal images the first one's

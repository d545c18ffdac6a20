"""`python -m mrg data check` as a user meets it, and the golden values of IU X-Ray where the real files are at hand."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from mrg.cli import main
from mrg.commands.data_check.reports import measure_leakage
from mrg.commands.data_check.statistics import collect_statistics
from mrg.datamodules.iu import IUXRayDataModule
from mrg.metrics import CONDITIONS, POSITIVE, RulesLabeler
from tests.trees import REPORTS, write_annotation, write_iu_tree, write_mimic_tree

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
IU_ROOT = ROOT.parent / "shared/data/iu_xray"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_iu_tree(tmp_path / "data", num_views=2)
    return tmp_path / "data"


def arguments(root, *options):
    return [
        *("data", "check", f"--config={CONFIGS / 'iu_tiny.yaml'}", f"--data.init_args.root={root}"),
        *("--data.init_args.variant=any", "--data.init_args.num_workers=0", *options),
    ]


def failure(capsys, argv):
    """Exit code and what stands on stderr."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    return stop.value.code, capsys.readouterr().err.strip()


def test_table_json_and_page(root, capsys):
    main(arguments(root))
    out, err = capsys.readouterr()
    assert all(line.startswith("Warning: IU") for line in err.splitlines())  # a bar of progress is for terminals
    assert "\x1b" not in out
    folder = Path("data_check/iu_tiny")
    assert out.endswith(f"Page: {folder / 'data_check.html'}\nResults: {folder / 'data_check.json'}\n")
    result = json.loads((folder / "data_check.json").read_text())
    assert {split: (row["studies"], row["images"]) for split, row in result["counts"].items()} == {
        "train": (8, 16),
        "val": (2, 4),
        "test": (3, 6),
    }
    assert result["images"]["missing"] == result["images"]["unreadable"] == []
    assert sum(result["images"]["sizes"].values()) == 26
    assert result["data"]["config"]["class_path"] == "mrg.datamodules.iu.IUXRayDataModule"
    assert result["baselines"]["scores"]["test"]["margin"] == 0.3  # the configuration's
    assert "<title>Data check: iu_tiny</title>" in (folder / "data_check.html").read_text()


def test_the_same_data_give_the_same_files_whatever_the_workers(root):
    contents = []
    for num_workers in (0, 2, 2):
        main(arguments(root, f"--data.init_args.num_workers={num_workers}"))
        files = (Path("data_check/iu_tiny") / name for name in ("data_check.json", "data_check.html"))
        contents.append([re.sub(r"num_workers\S+ \d", "", file.read_text()) for file in files])
    assert contents[0] == contents[1] == contents[2]


def test_all_bad_images_are_listed_and_exit_code_is_1(root, capsys):
    lost = [root / "images" / f"train{i}" / "0.png" for i in range(7)]
    for file in lost:
        file.unlink()
    damaged = root / "images" / "test1" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.raises(SystemExit) as stop:
        main(arguments(root, "--output=out"))
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "Error: Missing images: 7 of 26." in out
    assert "… all 7 in out/data_check.json" in out
    assert "1.png is truncated at 300 bytes" in out
    result = json.loads(Path("out/data_check.json").read_text())
    assert [row["image"] for row in result["images"]["missing"]] == [str(file) for file in lost]
    assert [row["study"] for row in result["images"]["unreadable"]] == ["test1"]
    page = Path("out/data_check.html").read_text()
    assert all(str(file) in page for file in [*lost, damaged])
    # A run still refuses them.
    with pytest.raises(FileNotFoundError, match="7 of the 26 images"):
        IUXRayDataModule(str(root), variant="any").setup()


def test_unread_images(root, capsys):
    (root / "images" / "test1" / "1.png").write_bytes(b"no image")
    main(arguments(root, "--images=false"))
    assert "Note: Images were not read" in capsys.readouterr().out


def test_reports_are_compared_as_written(root):
    """The configuration drops the de-identification token from training targets, which would hide leakage."""
    content = json.loads((root / "annotation.json").read_text())
    for split in ("train", "test"):
        content[split][0]["report"] = "The XXXX heart is enlarged."
    write_annotation(root, content)
    main(arguments(root, "--images=false"))
    result = json.loads(Path("data_check/iu_tiny/data_check.json").read_text())
    row = next(row for row in result["leakage"] if (row["split"], row["source"]) == ("test", "train"))
    assert (row["folded"], row["free"]) == (3, 0)
    assert result["repeats"]["most"][0]["report"] in REPORTS


@pytest.mark.parametrize("num_workers", [0, 1])
def test_studies_that_are_made_when_asked_for(tmp_path, monkeypatch, capsys, num_workers):
    monkeypatch.chdir(tmp_path)
    write_mimic_tree(tmp_path / "text", tmp_path / "jpg")
    lost = tmp_path / "jpg/files/p11/p11000015/s50000007/g1.jpg"
    lost.unlink()
    options = [f"--data.init_args.{name}={tmp_path / folder}" for name, folder in
               (("report_root", "text"), ("image_root", "jpg"), ("index", "index"))]  # fmt: skip
    workers = f"--data.init_args.num_workers={num_workers}"
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", f"--config={CONFIGS / 'mimic.yaml'}", *options, workers])
    assert stop.value.code == 1
    result = json.loads(Path("data_check/mimic/data_check.json").read_text())
    assert {split: row["studies"] for split, row in result["counts"].items()} == {"train": 3, "val": 1, "test": 1}
    assert result["images"]["missing"] == [{"split": "train", "study": "50000007", "image": str(lost)}]
    assert result["images"]["unreadable"] == []
    assert re.search(r"^Removed by filters$", capsys.readouterr().out, re.MULTILINE)
    assert sum(result["data"]["removed"].values()) == 5


def table_arguments(root, rows, *options):
    """A table of studies whose images are there, but for those called lost."""
    (root / "t.csv").write_text("id,patient,image,report,split\n" + "".join(f"{row}\n" for row in rows))
    columns = "{image: image, report: report, id: id, patient: patient, split: split}"
    return [
        *("data", "check", "--data=mrg.datamodules.table.TableDataModule", f"--data.init_args.root={root}"),
        *("--data.init_args.table=t.csv", f"--data.init_args.columns={columns}", "--data.init_args.split=column"),
        *("--data.init_args.num_workers=0", "--images=false", "--output=out", *options),
    ]


def checked():
    return json.loads(Path("out/data_check.json").read_text())


def test_images_that_a_setting_leaves_out_are_a_warning_and_their_studies_not_counted(root, capsys):
    there = "images/train0/0.png"
    rows = [f"1,p1,{there},Edema.,train", "2,p2,lost.png,Edema.,train", f"3,p3,{there},Clear.,test"]
    main(table_arguments(root, rows, "--data.init_args.missing_images=drop"))
    result = checked()
    assert result["counts"]["train"]["studies"] == 1
    assert result["data"]["dropped"] == {"missing_images drop": [str(root / "lost.png")]}
    out = " ".join(capsys.readouterr().out.split())
    assert f"Warning: Missing files are left out, as in a run (data.init_args.missing_images drop): 1: {root}" in out
    assert "Error" not in out
    with pytest.raises(SystemExit) as stop:
        main(table_arguments(root, rows))
    assert stop.value.code == 1
    assert checked()["counts"]["train"]["studies"] == 2
    assert "Error: Missing images: 1 of 3." in capsys.readouterr().out


@pytest.mark.parametrize("row", ["study", "image"])
def test_an_id_that_stands_twice_does_not_hide_what_else_is_wrong(root, capsys, row):
    there = "images/train0/0.png"
    rows = [
        f"1,p1,{there},Edema.,train",
        f"1,p1,{there},Edema.,test",
        "2,p2,lost.png,Clear.,train",
        f"3,p3,{there},,val",
    ]
    with pytest.raises(SystemExit) as stop:
        main(table_arguments(root, rows, f"--data.init_args.row={row}", "--data.init_args.empty_reports=keep"))
    assert stop.value.code == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "Error: Missing images: 1 of 4." in out
    assert "Error: Studies of test with the id of another study: 1 (1)." in out
    assert "Warning: Patients in both test and train: 1" in out
    assert checked()["counts"]["test"]["repeated_ids"] == ["1"]
    assert checked()["counts"]["train"]["studies"] == 2


def test_a_patient_in_val_and_test_is_a_warning(root, capsys):
    there = "images/train0/0.png"
    main(table_arguments(root, [f"1,p1,{there},Edema.,train", f"2,p2,{there},Mass.,val", f"3,p2,{there},Clear.,test"]))
    out = " ".join(capsys.readouterr().out.split())
    assert "Warning: Patients in both test and val: 1, with 1 of the 1 test studies." in out


def test_limits_are_said(root, capsys):
    main(arguments(root, "--images=false", "--data.init_args.limit_train=2"))
    out = " ".join(capsys.readouterr().out.split())
    assert "Only a random subset of the studies was checked (limit_train 2)" in out


def test_a_configuration_with_keys_of_its_own(root, capsys):
    Path("mine.yaml").write_text(
        "name: mine\nsize: 56\nmodel: {class_path: no.such.Model}\ntrainer: {precision: nonsense}\n"
        "data:\n  class_path: mrg.datamodules.demo.DemoDataModule\n"
        "  init_args: {num_train: 8, num_val: 2, num_test: 3, image_size: '${size}'}\n"
    )
    main(["data", "check", "-c", "mine.yaml", "--data.init_args.num_test=4"])
    assert capsys.readouterr().out.startswith("DemoDataModule (train 8, val 2, test 4)\n")
    result = json.loads(Path("data_check/mine/data_check.json").read_text())
    assert list(result["images"]["sizes"]) == ["56x56"]
    assert result["baselines"]["scores"]["test"]["margin"] == 0.5


def test_a_labeler_is_named_as_in_fit(root, capsys):
    main(arguments(root, "--images=false", "--labeler=mrg.metrics.RulesLabeler", "--labeler.cache_size=5"))
    assert "labeler rules" in capsys.readouterr().out


def test_only_an_earlier_check_is_written_over(root, capsys):
    main(arguments(root, "--output=out", "--images=false"))
    main(arguments(root, "--output=out", "--images=false"))
    page = Path("own/data_check.html")
    page.parent.mkdir()
    for name, text in (("data_check.html", "mine"), ("data_check.json", "[]"), ("data_check.json", "no JSON")):
        (page.parent / name).write_text(text)
        code, message = failure(capsys, arguments(root, "--output=own"))
        assert code == 2
        assert message.splitlines()[-1] == (
            "mrg: own contains a data_check.json or data_check.html that `data check` did not write: choose another "
            "--output."
        )
    assert page.read_text() == "mine"


def test_usage_is_one_line(capsys):
    usage = "usage: python -m mrg data check --config FILE (`python -m mrg data check --help` lists every key)"
    for argv in (["data"], ["data", "chek"], ["data", "chek", "--help"]):
        assert failure(capsys, argv) == (2, f"mrg: {usage}")
    main(["data", "--help"])
    assert capsys.readouterr().out == f"{usage}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "There is no data to check: pass a configuration with a `data` section by --config."),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--config=broken.yaml"], "Problems parsing config"),
        (["--config=empty.yaml"], "There is no data to check"),
        ([f"--config={CONFIGS / 'iu.yaml'}"], "Folder data/iu_xray does not exist"),
        ([f"--config={CONFIGS / 'demo.yaml'}", "--data.init_args.numtrain=3"], "Option 'numtrain' is not accepted"),
        ([f"--config={CONFIGS / 'demo.yaml'}", "--pictures=false"], "unrecognized arguments: --pictures=false"),
        ([f"--config={CONFIGS / 'demo.yaml'}", "--output=file/x"], "file/x cannot be created (Not a directory)"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text("name: [")
    Path("empty.yaml").write_text("name: x\n")
    Path("file").write_text("")
    code, text = failure(capsys, ["data", "check", *argv])
    assert code == 2
    assert message in text.splitlines()[-1]
    assert "Traceback" not in text


@pytest.fixture(scope="module")
def iu(tmp_path_factory):
    """The check of the real files; their text stays in a temporary folder."""
    if not IU_ROOT.is_dir():
        pytest.skip("the IU X-Ray data are not at ../shared/data/iu_xray")
    output = tmp_path_factory.mktemp("iu")
    config = [f"--config={CONFIGS / 'iu_tiny.yaml'}", f"--data.init_args.root={IU_ROOT}", f"--output={output}"]
    main(["data", "check", *config, "--data.init_args.num_workers=0"])
    return json.loads((output / "data_check.json").read_text())


def test_iu_counts_images_and_views(iu):
    assert {split: (row["studies"], row["images"]) for split, row in iu["counts"].items()} == {
        "train": (2069, 4138),
        "val": (296, 592),
        "test": (590, 1180),
    }
    assert iu["counts"]["test"]["views"] == {"F,L": 526, "L,F": 54, "F,F": 7, "L,L": 3}
    assert iu["counts"]["val"]["views"] == {"F,L": 262, "L,F": 26, "L,L": 7, "F,F": 1}
    assert iu["images"]["missing"] == iu["images"]["unreadable"] == []
    assert iu["images"]["sizes"] == {"256x256": 5910}
    assert [group["across_studies"] for group in iu["images"]["duplicates"]] == [False]
    assert all(not row["empty"] for row in iu["reports"].values())


def test_iu_leakage(iu):
    rows = {(row["split"], row["source"]): row for row in iu["leakage"]}
    test, val = rows["test", "train"], rows["val", "train"]
    assert (test["folded"], test["free"], test["num_studies"]) == (274, 316, 590)
    assert (val["folded"], val["free"], val["num_studies"]) == (65, 231, 296)
    # By rules, 10 of the repeated reports are not normal.
    assert test["abnormal"] == {"num_studies": 242, "exact": 10, "folded": 10}
    assert iu["baselines"]["train_count"] == 29


def test_iu_leakage_of_those_indexed_as_not_normal():
    """The published count of normal studies comes from the MeSH index, where some studies have no entry at all."""
    if not IU_ROOT.is_dir():
        pytest.skip("the IU X-Ray data are not at ../shared/data/iu_xray")
    with (IU_ROOT / "indiana_reports.csv").open(encoding="utf-8-sig", newline="") as lines:
        is_normal = {f"CXR{row['uid']}": row["MeSH"].strip().lower() == "normal" for row in csv.DictReader(lines)}
    data = IUXRayDataModule(str(IU_ROOT))
    data.setup()
    statistics = collect_statistics(data.splits, RulesLabeler())
    shares = {}
    for split, studies in data.splits.items():
        flags = np.array([is_normal[study.id.split("_")[0]] for study in studies])
        statistics[split].labels[:, CONDITIONS.index("No Finding")] = np.where(flags, POSITIVE, 0)
        shares[split] = round(100 * flags.mean(), 1)
    assert shares == {"train": 33.0, "val": 33.1, "test": 52.0}
    row = next(row for row in measure_leakage(statistics) if (row["split"], row["source"]) == ("test", "train"))
    assert row["abnormal"]["num_studies"] == 283
    assert row["abnormal"]["folded"] == 31


def test_iu_shift_is_that_of_normal_reports_alone(iu):
    shift = iu["labels"]["shift"]["differences"]
    assert [name for name, row in shift["test"].items() if row["is_shift"]] == ["No Finding"]
    assert not any(row["is_shift"] for row in shift["val"].values())
    share = {split: rows["No Finding"]["share"] for split, rows in iu["labels"]["prevalence"].items()}
    assert share["test"] - share["train"] == pytest.approx(0.2109, abs=0.001)


def test_iu_baselines_have_intervals_in_every_convention(iu):
    systems = iu["baselines"]["scores"]["test"]["systems"]
    assert list(systems) == ["constant normal", "most frequent report"]
    scores = systems["constant normal"]["scores"]
    assert len(scores) == 26
    assert all(row["low"] <= row["value"] <= row["high"] for row in scores.values())
    assert scores["CE-F1 micro-13+"]["value"] == 0 < scores["CE-F1 micro-14"]["value"]

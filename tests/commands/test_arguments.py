"""Options of commands without a configuration: one line says what is wrong."""

import json

import pytest

from mrg.cli import main


def failure(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        main(argv.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("page --run x", "the following arguments are required: RUN."),
        ("page a --nonsense", "unrecognized arguments: --nonsense."),
        ("gallery a --referenses=b", "unrecognized arguments: --referenses=b; did you mean '--references'?"),
        ("gallery", "the following arguments are required: RUN|FILE."),
        ("compare a", "the following arguments are required: B."),
        ("compare a b --changes 3", "unrecognized arguments: --changes 3; did you mean '--changed'?"),
        ("runs --latest", "unrecognized arguments: --latest."),
        ("configs iu", "unrecognized arguments: iu."),
        ("size --devices x", "argument --devices: invalid int value: 'x'."),
        ("audit --images maybe", "argument --images: invalid choice: 'maybe'"),
    ],
)
def test_what_is_unknown_or_missing_is_one_line(capsys, argv, message):
    error = failure(capsys, argv)
    assert error.startswith(f"mrg: {message}")
    assert error.endswith(f" `python -m mrg {argv.split()[0]} --help` lists the arguments.")


@pytest.mark.parametrize("argv", ["a --runs {}", "--runs={} a", "--runs {} a b"])
def test_page_finds_runs_by_name(tmp_path, capsys, argv):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text("step,loss\n0,1\n")
        (tmp_path / name / "run.json").write_text(json.dumps({"state": "finished"}))
    main(["page", *argv.format(tmp_path).split()])
    pages = [str(tmp_path / name / "index.html") for name in "ab"[: 1 + argv.endswith("b")]]
    assert capsys.readouterr().out.splitlines() == pages
    assert failure(capsys, f"page c --runs {tmp_path}") == (f"mrg: There is no run c in {tmp_path}. There are no runs.")


def test_one_folder_of_runs(capsys):
    assert failure(capsys, "runs x --runs y") == "mrg: x and --runs y both name the folder of runs: pass one of them."

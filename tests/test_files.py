import json

import pytest
import yaml

from mrg.errors import UserError
from mrg.files import (
    append_text,
    check_yaml,
    identifier,
    is_missing,
    parse_json,
    parse_yaml,
    read_config,
    write_json,
    write_lines,
)
from mrg.metrics import format_score, parse_completion

WORDS = ("nan", "None", "N/A", "null", "NaN", "-", "", " \n", " NULL ", "NA", "#N/A", "<NA>")
REPORTS = ("None.", "No.", "normal", "Nan is the patient's name.", "Nothing.", "- The lungs are clear.", "0")


@pytest.mark.parametrize("word", [*WORDS, None, float("nan")])
def test_missing(word):
    assert is_missing(word)


@pytest.mark.parametrize("text", [*REPORTS, 0, 0.0, [], False])
def test_anything_else_is_a_value(text):
    assert not is_missing(text)


@pytest.mark.parametrize("word", ["nan", "None", "-"])
def test_a_policy_that_writes_such_a_word_writes_no_report(word):
    """In the GRPO reward and in evaluation, which parse completions with this function."""
    texts = [f"<think>x</think><report>{word}</report>", f"x<report> {word}</report>", f"<report>{word}</report>"]
    assert [parse_completion(text).report for text in texts] == ["", "", ""]
    assert format_score([texts[0]]).tolist() == format_score([texts[2]], "absent").tolist() == [0.0]
    assert format_score([f"<think>{word}</think><report>Clear.</report>"]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (12, "12"), (12.0, "12"), ("12", "12"), ("12.0", "12"), (" 50414267.00 ", "50414267"), (50414267.0, "50414267"),
        (1e16, "10000000000000000"), (-3.0, "-3"), ("007", "007"), ("1.5", "1.5"), (1.5, "1.5"), ("1.2.0", "1.2.0"),
        ("v1.0", "v1.0"), ("12.", "12."), ("nan", ""), (None, ""), (float("nan"), ""), ("None", ""),
    ],
)  # fmt: skip
def test_identifiers(value, expected):
    assert identifier(value) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            r'{"id": "a", "report": "Clear. \ud83d"}',
            r"the text of 'report' has half of a surrogate pair \(\\ud83d\) at",
        ),
        (r'[{"image_path": ["x", "\uDE00.png"]}]', r"the text of 'image_path' has half .* at character 0"),
        (r'{"\ud800": 1}', "the text of a key has half of a surrogate pair"),
        (r'"\ude00\ud83d"', "the text of a value has half of a surrogate pair"),
        ("[" * 100_000 + "]" * 100_000, "its values are nested too deeply"),
        ("[" + "9" * 5000 + "]", "a number has too many digits"),
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "the key 'b' occurs more than once"),
    ],
)
def test_json_that_cannot_be_used_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        parse_json(text)
    assert "\n" not in str(error.value)
    assert not str(error.value).endswith(".")  # the caller adds the file


def test_pairs_of_surrogates_are_characters():
    assert parse_json(r'{"id": "\ud83d\ude00", "text": "\\ud83d"}') == {"id": "\U0001f600", "text": r"\ud83d"}


def test_a_repeated_key_among_many_is_found_in_linear_time():
    """A comparison of each key with all before it would take minutes."""
    text = "{" + ", ".join(f'"{n}": 0' for n in range(200_000)) + ', "199999": 1}'
    with pytest.raises(UserError, match="the key '199999' occurs more than once"):
        parse_json(text)


def test_any_text_can_be_written(tmp_path):
    rows = [{"id": "\udce9", "text": "\ud83d \U0001f600 \u2028 é"}]
    write_json(tmp_path / "a.json", rows)
    write_lines(tmp_path / "a.jsonl", rows)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == rows
    assert json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8")) == rows[0]
    append_text(tmp_path / "a.txt", "\ud83d")
    assert (tmp_path / "a.txt").read_text() == r"\ud83d"


def laughs(levels: int) -> str:
    """YAML whose last value has ten to the power of `levels` parts."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(30), r"The value in line 5 has more than 100,000 parts, counting each alias\."),
        ("a: &a [*a]", "The value in line 1 contains itself"),
        ("a: &a {b: *a}", "The value in line 1 contains itself"),
        ("[" * 150 + "]" * 150, "The values in line 1 are nested too deeply"),
        ("[" * 10_000 + "]" * 10_000, "Its values are nested too deeply"),
        ("a: 1\nb: {c: 1,\n c: 2}", "The key 'c' in line 2 is repeated: remove it or line 3"),
        ("a: [1", "expected"),
    ],
)
def test_yaml_that_cannot_be_used(text, message):
    for read in (check_yaml, parse_yaml):
        with pytest.raises(yaml.YAMLError, match=message):
            read(text)


def test_aliases_of_a_usual_number_are_allowed():
    values = parse_yaml(laughs(4) + "empty:\n")
    assert len(values["a3"][9][9][9]) == 10
    assert parse_yaml("") is None
    with pytest.raises(yaml.YAMLError, match="day is out of range"):
        parse_yaml("2001-02-31")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: \xff\n", "is not UTF-8 text (invalid start byte at byte 6): save it as UTF-8."),
        (b"a: [\n\nb", "is not a readable configuration: "),
        (b"a: 1\na: 2\n", "is not a readable configuration: The key 'a' in line 1 is repeated"),
        (b"- 1\n", "is not a configuration: expected keys with values, but got list."),
        (b"text", "is not a configuration: expected keys with values, but got str."),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_line_with_its_name(tmp_path, content, message):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_config(file)
    assert str(error.value).startswith(f"{file} {message}")
    assert "\n" not in str(error.value)


def test_a_configuration_without_keys(tmp_path):
    (tmp_path / "a.yaml").write_text("# nothing yet\n")
    assert read_config(tmp_path / "a.yaml") == {}

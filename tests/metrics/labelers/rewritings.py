"""Ways to write the sentences of a report that change its form and none of its words."""

import re
import unicodedata

FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)} | {0x20: 0x3000}
LIGATURES = {"ffi": "\ufb03", "ffl": "\ufb04", "ff": "\ufb00", "fi": "\ufb01", "fl": "\ufb02"}
BULLETS = (
    "-",
    "*",
    "+",
    "\u2013",
    "\u2010",
    "\u2011",
    "\u2212",
    "\u2014",
    "\u25cf",
    "\u25aa",
    "\u00b7",
    "\u2022",
    "\u2023",
    "\u25e6",
)


def bare(sentences):
    """The sentences without their full stops."""
    return [sentence.rstrip(".") for sentence in sentences]


def items(mark):
    return lambda sentences: "\n".join(f"{mark} {sentence}" for sentence in bare(sentences))


def numbered(form, letters=False):
    def write(sentences):
        labels = "abcdefghijklmnop" if letters else range(1, 17)
        lines = [f"{form.format(label)} {s}" for label, s in zip(labels, bare(sentences), strict=False)]
        return "\n".join(lines)

    return write


def joined(separator):
    return lambda sentences: separator.join(bare(sentences))


def characters(change):
    return lambda sentences: change(" ".join(sentences))


def ligatures(text):
    for letters, ligature in LIGATURES.items():
        text = text.replace(letters, ligature)
    return text


def hyphenate(text):
    """Part long plain words at a line's end."""
    return re.sub(r"\b([a-z]{4})([a-z]{6,})\b", r"\1-\n\2", text)


def combine(text):
    return unicodedata.normalize("NFD", re.sub(r"([aeou])([a-z]{4})", "\\1\u0301\\2", text))


REWRITINGS = {
    **{f"items {bullet!r}": items(bullet) for bullet in BULLETS},
    **{f"numbered {form!r}": numbered(form) for form in ("{}.", "{})", "({})", " {}.", "   ({})")},
    **{f"lettered {form!r}": numbered(form, letters=True) for form in ("{}.", "{})", "({})")},
    **{f"joined {separator!r}": joined(separator) for separator in (
        " \u2022 ", "\u2022", " - ", " \u2013 ", " \u2014 ", "\u2014", " / ", " | ", "<br>", "<br/>\n", "\n", "\r\n",
        "\r", "\n\n", "\u2028", "\u2029", "\u3002", "\uff0e", "\u2026 ", "... ", "; ", "</p>\n<p>", "\n---\n", " -- ",
    )},
    "full width": characters(lambda text: text.translate(FULL_WIDTH)),
    "ligatures": characters(ligatures),
    "soft hyphens": characters(lambda text: re.sub(r"([a-z]{3})([a-z]{3})", "\\1\u00ad\\2", text)),
    "combining marks": characters(combine),
    "hyphenated": characters(hyphenate),
    "byte-order mark": characters(lambda text: "\ufeffFindings: " + text),
    "no-break spaces": characters(lambda text: text.replace(" ", "\u00a0")),
    "bold": characters(lambda text: f"**{text}**"),
    "heading": characters(lambda text: f"## Findings\n\n{text}\n"),
    "bold items": lambda sentences: "\n".join(f"- **{sentence}**" for sentence in sentences),
    "quote": lambda sentences: "\n".join(f"> {sentence}" for sentence in sentences),
    "list of HTML": lambda s: "<ul>" + "".join(f"<li>{sentence}</li>" for sentence in bare(s)) + "</ul>",
    "skipped section": characters(lambda text: f"**Indication:** Pneumonia, edema.\n\n**Findings:** {text}"),
    "skipped heading": characters(lambda text: f"## Indication\nPneumonia, edema.\n\n## Findings\n{text}"),
    "skipped item": characters(lambda text: f"- Indication: pneumonia, edema\n- Findings: {text}"),
}  # fmt: skip
"""Name -> sentences to text."""

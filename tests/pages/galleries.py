"""What the tests of galleries in a browser share."""


def rows(studies, texts, with_reference=True):
    return [
        {
            "id": study.id,
            "prediction": text,
            "thinking": "Cardiomegaly first." if place % 2 else "",
            "completion": text,
            **({"target": study.report, "format": place != 3} if with_reference else {}),
        }
        for place, (study, text) in enumerate(zip(studies, texts, strict=True))
    ]


def heading(page, place=0):
    return page.locator(".study h3").nth(place).inner_text()


def scores(page):
    return [int(text) for text in page.locator(".study section:nth-of-type(2) > .score b").all_inner_texts()]

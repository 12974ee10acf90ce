import base64
from html.parser import HTMLParser

import pytest

from pretraining.monitoring import page

MARKUP = """<script>alert("&'")</script>"""
VOID = {"meta", "img", "br", "link"}


class Document(HTMLParser):
    """Text, tags and attributes; an element that is not closed in order is an error."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


PIECES = {
    "title": lambda text: "",
    "section": lambda text: page.section(text),
    "paragraph": lambda text: page.paragraph(text),
    "box": lambda text: page.box(text, [text], warning=True),
    "code": lambda text: page.code(text),
    "facts": lambda text: page.facts({text: text}),
    "table": lambda text: page.table([text], [[text]]),
    "picture": lambda text: page.picture(b"png", text, text),
}


@pytest.mark.parametrize("piece", PIECES)
def test_text_is_shown_as_it_is_and_never_becomes_markup(piece):
    document = Document(page.page(MARKUP, [PIECES[piece](MARKUP)]))
    assert "script" not in document.tags
    assert MARKUP in document.text
    if piece == "picture":
        assert ("alt", MARKUP) in document.attributes


def test_a_page_asks_for_nothing_outside_and_fits_a_phone():
    html = page.page("Title", [page.picture(b"abc", "a picture"), page.group("curves", ["<p>x</p>"])])
    document = Document(html)
    assert {"script", "link", "iframe"}.isdisjoint(document.tags)
    sources = [value for name, value in document.attributes if name in ("src", "href")]
    assert sources == [f"data:image/png;base64,{base64.b64encode(b'abc').decode()}"]
    assert "http" not in html.replace("http-equiv", "")
    assert "url(" not in html
    assert ("content", page.POLICY) in document.attributes
    assert ("content", "width=device-width, initial-scale=1") in document.attributes
    assert "@media print" in html


def test_numbers_have_three_digits_and_what_was_not_measured_is_a_hyphen():
    document = Document(page.table(["a", "b", "c"], [[0.123456, None, "x"]]))
    assert document.text == ["a", "b", "c", "0.123", "-", "x"]

"""HTML pages parsed as a browser and a screen reader read them, and the rules for our pages."""

import re
from html.parser import HTMLParser

_VOID = {"meta", "img", "br", "hr", "input", "link", "rect", "path", "line", "use"}


class Page(HTMLParser):
    """A parsed page.

    Attributes:
        elements: (name, attributes) of every start tag, in order.
        headings: (level, text).
        tables: for each id (or caption), the rows of cell texts.
        scripts: the content of every script, with its attributes.
        text: everything that is shown as text.
    """

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.headings, self.tables, self.scripts, self._text = [], [], {}, [], []
        self._open, self._heading, self._rows, self._cell, self._script = [], None, None, None, None
        self.feed(text)
        self.close()
        assert self._open == [], f"left open: {self._open}"

    @property
    def text(self):
        return " ".join(" ".join(self._text).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag not in _VOID:
            self._open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self._heading = []
        elif tag == "table":
            self._rows = self.tables.setdefault(attributes.get("id", len(self.tables)), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._cell = []
        elif tag == "script":
            self._script = ""
            self.scripts.append((attributes, ""))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in _VOID:
            return
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> closes something else"
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), " ".join("".join(self._heading).split())))
            self._heading = None
        elif tag in ("td", "th"):
            self._rows[-1].append(" ".join("".join(self._cell).replace("\xad", "").split()))
            self._cell = None
        elif tag == "script":
            self.scripts[-1] = (self.scripts[-1][0], self._script)
            self._script = None

    def handle_data(self, data):
        if self._script is not None:
            self._script += data
            return
        if self._open and self._open[-1] == "style":
            return
        self._text.append(data)
        for collector in (self._heading, self._cell):
            if collector is not None:
                collector.append(data)

    def all(self, tag):
        """The attributes of every element of this name."""
        return [attributes for name, attributes in self.elements if name == tag]


def check_rules(text):
    """Check that a page works offline, with a screen reader and with a keyboard; returns the parsed page."""
    page = Page(text)
    check_offline(page, text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)), "an id twice"
    for tag, attributes in page.elements:
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids, (tag, attributes["href"])
        for reference in attributes.get("aria-labelledby", "").split():
            assert reference in ids, reference
        if tag == "img":
            assert attributes.get("alt"), "an image without alt text"
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")
        if tag == "svg" and "figure" in attributes.get("class", ""):
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        if attributes.get("tabindex") == "0":
            assert attributes.get("aria-label"), "a place for the keyboard without a name"
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in zip(levels, levels[1:])), levels
    assert all(words for _, words in page.headings)
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("main")) == 1
    assert page.all("header")
    assert page.all("footer")
    assert page.all("caption").__len__() == len(page.all("table"))
    first_link = page.all("a")[0]
    assert first_link == {"class": "skip", "href": "#content"}
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    return page


def check_offline(page, text):
    """Check that a page loads nothing from elsewhere."""
    assert not page.all("link")
    assert not page.all("iframe")
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href", "background"):
            value = attributes.get(name)
            if value is not None:
                assert value.startswith(("data:image/", "#")), (tag, name, value[:80])
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert "xmlns" not in attributes
    without_data = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", text)
    assert "@import" not in without_data
    for address in re.findall(r"url\(([^)]*)\)", without_data):
        assert address.startswith("#") or address.startswith("\"' + sheet.src") or address in ("\"' + sheet.src + '\"",)
    assert not re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z]+", without_data), "an address"
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")

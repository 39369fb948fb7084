"""What a page holds, as a browser would find it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from html.parser import HTMLParser

SVG = ""


class Collector(HTMLParser):
    VOID = ("meta", "link", "input", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


def svg(text):
    return ET.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])  # noqa: S314


def svgs(text):
    parts = text.split("<svg")[1:]
    return [svg(f"<svg{part}") for part in parts]

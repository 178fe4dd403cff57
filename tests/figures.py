"""Whether a page has the figures that the code or the records give, in whatever words it says them."""

import re
from pathlib import Path


def paragraphs(page: Path) -> list[str]:
    """Its paragraphs and the rows of its tables and lists, each on one line, without comments."""
    text = re.sub('<!--.*?-->', '', page.read_text(), flags=re.DOTALL)
    text = re.sub(r'\n(?=\||- |\d\. )', '\n\n', text)
    return [' '.join(block.split()) for block in text.split('\n\n')]


def has(page: Path, *figures: float | str) -> bool:
    """Whether one paragraph of the page has all of these, in this order and as numbers of their own."""
    texts = (f'{each:g}' if isinstance(each, float) else str(each) for each in figures)
    pattern = '.*?'.join(rf'(?<![\d.]){re.escape(text)}(?!\d|\.\d)' for text in texts)
    return any(re.search(pattern, paragraph) for paragraph in paragraphs(page))

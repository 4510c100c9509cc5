"""Reports of studies: plain data in, self-contained HTML, Markdown, CSV and a terminal table out."""

"""The documentation's pictures: ``python -m tests.dashboard.screenshots runs STUDY`` makes them of a finished study."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.dashboard.browser import chromium, serving

IMAGES = Path(__file__).parents[2] / "docs" / "img"
# Picture -> (page and options, what must have been drawn, the part that is shown or nothing for the whole page).
SHOTS = {
    "sweeps": ("sweeps?", "table.rows", ""),
    "front": ("front?", ".plot[data-figure=front] .main-svg", "section >> nth=0"),
    "architecture": ("architecture?", "svg.subnet", "section >> nth=0"),
    "pinned": ("front?pin=m2@{study}&pin=m12@{study}&", "#pins figure >> nth=1", "#pins"),
    "search": ("search?", ".plot[data-figure=importance] .main-svg", "section:has([data-figure=importance])"),
    "latency": ("latency?", ".plot[data-figure=predicted] .main-svg", "section:has([data-figure=predicted])"),
}


def main(root: Path, study: str, profiled: str) -> None:
    """Take all pictures, that of the latency model of a study whose profile lies below the root."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with serving(root) as address, chromium() as browser:
        page = browser.new_context(viewport={"width": 1100, "height": 800}, device_scale_factor=1.5).new_page()
        for name, (path, drawn, part) in SHOTS.items():
            chosen = {"sweeps": "", "latency": f"study={profiled}"}.get(name, f"study={study}")
            page.goto(f"{address}/{path.format(study=study)}{chosen}")
            page.wait_for_selector(drawn, timeout=180_000)
            page.set_viewport_size({"width": 1100 if part else 1320, "height": 800})
            page.wait_for_timeout(400)
            if part:
                page.locator(part).first.screenshot(path=IMAGES / f"{name}.png")
            else:
                page.screenshot(path=IMAGES / f"{name}.png", full_page=True)
            print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[-1])

"""The documentation's pictures: ``python -m tests.dashboard.screenshots runs STUDY`` makes them of a finished study."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.dashboard.browser import chromium, serving

IMAGES = Path(__file__).parents[2] / "docs" / "img"
# Picture -> (page and options, what must have been drawn, the part that is shown).
SHOTS = {
    "sweeps": ("sweeps?", "table.rows", "main"),
    "front": ("front?", ".plot[data-figure=front] .main-svg", "section >> nth=0"),
    "architecture": ("architecture?", "svg.subnet", "section >> nth=0"),
    "latency": ("latency?", ".plot[data-figure=predicted] .main-svg", "section:has([data-figure=predicted])"),
}


def main(root: Path, study: str, profiled: str) -> None:
    """Take all pictures, that of the latency model of a study whose profile lies below the root."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with serving(root) as address, chromium() as browser:
        page = browser.new_context(viewport={"width": 1100, "height": 800}, device_scale_factor=1.5).new_page()
        for name, (path, drawn, part) in SHOTS.items():
            page.goto(f"{address}/{path}" + {"sweeps": "", "latency": f"study={profiled}"}.get(name, f"study={study}"))
            page.wait_for_selector(drawn, timeout=180_000)
            page.wait_for_timeout(400)
            page.locator(part).first.screenshot(path=IMAGES / f"{name}.png")
            print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[-1])

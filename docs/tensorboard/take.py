"""Take the pictures of this folder from a TensorBoard that is running: needs playwright, Pillow and a Chromium.

    tensorboard --logdir=out --port=6006
    python docs/tensorboard/take.py http://localhost:6006 /usr/bin/chromium
"""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

VIEWS = ("scalars", "text", "images", "histograms", "graphs", "projector", "pr_curves", "hparams")
FILTERS = {"scalars": "(gradient_norm|update_ratio|entropy)/blocks.1(.h1)?$|^train/loss|^val/loss|^lr/(head|muon)",
           "text": "hardest|^sample", "histograms": "(gradients|weights)/blocks.1.mlp.proj"}


def main(address, browser, *views):
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=[
            "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"])  # for WebGL
        page = chromium.new_page()
        for view in views or VIEWS:
            page.goto("about:blank")
            width, height = (2100, 560) if view == "hparams" else (1300, 860)  # a table of many columns
            page.set_viewport_size({"width": width, "height": height})
            page.goto(f"{address}/#{view}")
            page.wait_for_timeout(8000)
            if view in FILTERS:
                page.locator("tf-tag-filterer input").filter(visible=True).first.fill(FILTERS[view])
            if view == "graphs":
                for box in ("trunk", "blocks.1"):  # a box opens at a double click
                    page.locator("text", has_text=box).filter(visible=True).first.dblclick(force=True)
                    page.wait_for_timeout(3000)
                page.get_by_text("Fit to screen").click()
                page.evaluate("getSelection().removeAllRanges()")
            if view == "projector":
                page.wait_for_timeout(15000)  # until the points are there
                panel = page.frames[-1].locator("vz-projector-data-panel")
                panel.evaluate("panel => panel.selectedColorOptionName = 'truth'")
            page.wait_for_timeout(4000)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(64)
            picture.save(Path(__file__).with_name(f"{view}.png"), optimize=True)
            print(view)


if __name__ == "__main__":
    main(*sys.argv[1:])

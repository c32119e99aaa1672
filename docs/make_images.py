"""Draw the topologies for README and documentation: python docs/make_images.py"""

from pathlib import Path

import nestedseg

IMAGES = Path(__file__).parent / "images"

# The example of docs/topologies.md.
OWN = {
    "nodes": {"x0_1": ["x0_0", "x1_0"],
              "x2_1": ["x2_0", "x3_0"],
              "x1_2": {"inputs": ["x0_1", "x1_0", "x2_1"], "fuse": "sum"},
              "x0_3": ["x0_0", "x0_1", "x1_2"]},
    "heads": ["x0_1", "x0_3"],
}


def main() -> None:
    pictures = {name: nestedseg.topology(name, 4).to_svg()
                for name in ("unet", "unet_e", "unet_plus", "unetpp")}
    pictures["pruned"] = nestedseg.topology("unetpp", 4).to_svg(keep=2)
    pictures["own"] = nestedseg.Graph.from_dict(OWN).to_svg()
    IMAGES.mkdir(exist_ok=True)
    for name, svg in pictures.items():
        (IMAGES / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()

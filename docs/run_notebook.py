"""Run the notebook and keep what it prints and shows, made small: python docs/run_notebook.py

Needs the extras "train" and "docs". The test of the notebook runs it too, and keeps nothing.
"""

import base64
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "examples" / "segment_nuclei.ipynb"
FORMS = {"image/png": ("PNG", {}), "image/jpeg": ("JPEG", {"quality": 75})}
COLOURS = 32  # of a PNG


def main() -> None:
    notebook = execute(nbformat.read(NOTEBOOK, as_version=4))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":
            cell.outputs = [shrink(output) for output in cell.outputs
                            if output.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, NOTEBOOK)


def execute(notebook: NotebookNode) -> NotebookNode:
    """Run in an empty folder, from first cell to last; an error in a cell is one here."""
    with TemporaryDirectory() as folder:
        return NotebookClient(notebook, timeout=600, coalesce_streams=True,
                              resources={"metadata": {"path": folder}}).execute()


def shrink(output: NotebookNode) -> NotebookNode:
    """A picture as the smaller of a JPEG and a PNG of few colours."""
    if "image/png" in output.get("data", {}):
        picture = Image.open(io.BytesIO(base64.b64decode(output.data.pop("image/png"))))
        white = Image.new("RGBA", picture.size, "white")
        rgb = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
        files = {kind: save(rgb.quantize(COLOURS) if form == "PNG" else rgb, form, options)
                 for kind, (form, options) in FORMS.items()}
        kind = min(files, key=lambda kind: len(files[kind]))
        output.data[kind] = base64.b64encode(files[kind]).decode()
    return output


def save(picture: Image.Image, form: str, options: dict[str, int]) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, optimize=True, **options)
    return file.getvalue()


if __name__ == "__main__":
    main()

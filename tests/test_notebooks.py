"""The notebooks of Analysis are stored without outputs, with one parameter; tests/test_scan.py runs them."""

from pathlib import Path

import nbformat
import pytest

ANALYSIS = Path(__file__).resolve().parent.parent / "Analysis"
NAMES = ("assimilation", "assimilation_each_layer", "coverage")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_without_outputs_and_has_one_parameter(name):
    book = nbformat.read(ANALYSIS / f"{name}.ipynb", as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    parameters = [cell.source for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(parameters) == 1
    assert parameters[0].startswith("MODEL = ")
    assert "def " not in "".join(cell.source for cell in code)  # shared code stands in modules

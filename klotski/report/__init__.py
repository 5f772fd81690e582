"""Many runs side by side: what varied against what it did, as a table, as files and as plots."""

from klotski.report.files import open_folder, write_rows
from klotski.report.rows import Row, collect
from klotski.report.runs import Run
from klotski.report.table import print_table

__all__ = ["Row", "Run", "collect", "open_folder", "print_table", "write_rows"]

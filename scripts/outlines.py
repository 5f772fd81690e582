"""Write the outline of each shape in the package, so that it can be predicted without opening the model.

python -m scripts.outlines
"""

from klotski.assets import SHAPES
from klotski.executors.facts import outline_of
from klotski.executors.outline import write_outline
from klotski.model import open_model

if __name__ == "__main__":
    for folder in sorted(path for path in SHAPES.iterdir() if path.is_dir()):
        write_outline(outline_of(open_model(folder, None, is_dummy=True)), folder)
        print(folder.name)

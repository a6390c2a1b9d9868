"""Drone-like images drawn by a program: the data of the quick start, the tests and the documentation.

``generate`` writes them, ``scene.make_image`` draws one. What an image holds follows from (seed, split, index).
"""

from d2_ext.synthetic.config import CLASS_COLORS, CLASSES, SyntheticConfig, default_root, split_folder
from d2_ext.synthetic.register import load_synthetic_drone, register_synthetic_drone
from d2_ext.synthetic.writer import generate, is_complete

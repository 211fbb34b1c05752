"""Which folders become which packages; everything else is said in setup.cfg.

Installed, all lies inside of `sparsemask`, so that site-packages has one name of ours. In the repository the folders
of the verbs stand beside it: `sparsemask/_checkout.py` gives them the same names there.
"""

from setuptools import find_packages, setup

BESIDE = ("VOC12", "prune", "retrain", "search", "spaces")

setup(
    packages=[
        *find_packages(include=("sparsemask", "sparsemask.*")),
        *(f"sparsemask.{name}" for top in BESIDE for name in find_packages(include=(top, f"{top}.*"))),
    ],
    package_dir={f"sparsemask.{top}": top for top in BESIDE},
)

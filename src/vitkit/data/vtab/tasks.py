"""The 19 tasks as one literal table.

Tasks, groups and labels: "A Large-scale Study of Representation Learning with the Visual Task
Adaptation Benchmark" (Zhai et al., arXiv 1910.04867, Table 1 and Appendix A) and
google-research/task_adaptation, task_adaptation/data/*.py. Numbers of test images: the builders of
tensorflow/datasets that these files name; those of DMLab and KITTI could not be checked against
them, and only decide whether the page calls the test split the published one.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUPS = ("natural", "specialized", "structured")
FIT, CHOOSE = 800, 200  # images of each task: to fit on, and to choose by; then all are fitted


@dataclass(frozen=True)
class Task:
    group: str
    classes: int
    test_images: int  # of the whole test split
    reader: str  # by what vitkit.data.vtab.opening.READERS calls it
    # What its folder in FOLDER may be called, besides the task's own name: the data set's name, and
    # that of the folder in the copies of the benchmark with lists.
    folders: tuple[str, ...]
    labels: str  # what is to be told, and how a label is made


# fmt: off
TASKS = {
    "caltech101": Task("natural", 102, 6_084, "caltech101", (), "object, or background"),
    "cifar100": Task("natural", 100, 10_000, "open_data", ("cifar", "cifar-100-python",
                     "cifar-100-binary"), "object"),
    "dtd": Task("natural", 47, 1_880, "dtd", (), "texture"),
    "flowers102": Task("natural", 102, 6_149, "open_data", ("oxford_flowers102", "flowers-102"),
                       "flower"),
    "pets": Task("natural", 37, 3_669, "open_data", ("oxford_iiit_pet", "oxford-iiit-pet"),
                 "breed"),
    "svhn": Task("natural", 10, 26_032, "svhn", (), "digit of a house number"),
    "sun397": Task("natural", 397, 21_750, "sun397", ("SUN397",), "scene"),
    "patch_camelyon": Task("specialized", 2, 32_768, "patch_camelyon", ("pcam",),
                           "whether there is tumor tissue"),
    "eurosat": Task("specialized", 10, 5_400, "eurosat", ("EuroSAT",), "land use"),
    "resisc45": Task("specialized", 45, 6_300, "resisc45", ("NWPU-RESISC45",), "scene from above"),
    "diabetic_retinopathy": Task("specialized", 5, 42_670, "diabetic_retinopathy", (),
                                 "grade, 0 to 4"),
    "clevr_count": Task("structured", 8, 15_000, "clevr_count", ("clevr", "CLEVR_v1.0"),
                        "number of objects, 3 to 10"),
    "clevr_distance": Task("structured", 6, 15_000, "clevr_distance",
                           ("clevr", "CLEVR_v1.0", "clevr_dist"),
                           "depth of the nearest object, cut at 8, 8.5, 9, 9.5 and 10"),
    "dmlab": Task("structured", 6, 22_735, "dmlab", (),
                  "close, far or very far, of what is good or bad to reach"),
    "kitti_distance": Task("structured", 4, 711, "kitti_distance", ("kitti",),
                           "nearest car, van or truck: up to 8 m, up to 20 m, beyond, or none"),
    "dsprites_location": Task("structured", 16, 73_728, "dsprites_location",
                              ("dsprites", "dsprites_loc"), "x of 32 places, in pairs"),
    "dsprites_orientation": Task("structured", 16, 73_728, "dsprites_orientation",
                                 ("dsprites", "dsprites_ori"), "of 40 angles, by 2.5"),
    "smallnorb_azimuth": Task("structured", 18, 12_150, "smallnorb_azimuth",
                              ("smallnorb", "smallnorb_azi"), "from which of 18 sides"),
    "smallnorb_elevation": Task("structured", 9, 12_150, "smallnorb_elevation",
                                ("smallnorb", "smallnorb_ele"), "from which of 9 heights"),
}
# fmt: on

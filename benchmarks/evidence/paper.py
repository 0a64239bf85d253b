"""What the paper found on ImageNet, for the page to set beside our figures.

Source: Touvron et al. 2021 (arXiv 2012.12877v2), tables 3 and 4 and section 5.3.
"""

# Table 3: top-1 in percent of DeiT-Ti and DeiT-B at 224 pixels, by arm and head. The control of two
# class tokens has no figure there, only that it brings nothing.
TABLE_3 = {
    ("none", "cls"): (72.2, 81.8),
    ("soft", "cls"): (72.2, 81.8),
    ("hard", "cls"): (74.3, 83.0),
    ("token", "cls"): (73.9, 83.0),
    ("token", "dist"): (74.6, 83.1),
    ("token", "both"): (74.5, 83.4),
}

# Table 4: the share of images that two classifiers decide differently.
TABLE_4 = {
    ("truth", "teacher"): 0.171,
    ("truth", "student without"): 0.182,
    ("truth", "class head"): 0.170,
    ("truth", "distillation head"): 0.169,
    ("truth", "both heads"): 0.166,
    ("teacher", "student without"): 0.133,
    ("teacher", "class head"): 0.112,
    ("teacher", "distillation head"): 0.100,
    ("teacher", "both heads"): 0.102,
    ("student without", "class head"): 0.109,
    ("student without", "distillation head"): 0.110,
    ("student without", "both heads"): 0.107,
    ("class head", "distillation head"): 0.050,
    ("class head", "both heads"): 0.033,
    ("distillation head", "both heads"): 0.019,
}

# Section 4: class and distillation token, the learned ones and at the last layer; two class tokens.
COSINE = {("token", "learned"): 0.06, ("token", "end"): 0.93, ("two-class-tokens", "end"): 0.999}

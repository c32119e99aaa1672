"""What the paper prints: mean and standard deviation in per cent.

Source: Zhou et al., UNet++, IEEE TMI 2020, doi:10.1109/TMI.2019.2959609.
"""

Printed = tuple[float, float]

# Tables I and IV: IoU, by data set and architecture. The second row of UNet+ in 3-D is misprinted
# as VNet++; its parameters tell.
IOU: dict[str, dict[str, Printed]] = {
    "EM": {
        "unet-l1": (86.83, 0.43), "unet-l2": (87.59, 0.34), "unet-l3": (88.16, 0.29),
        "unet": (88.30, 0.24), "wide-unet": (88.37, 0.13), "unet-e": (88.33, 0.23),
        "unetp": (88.39, 0.15), "unetp-ds": (88.89, 0.12), "unetpp": (88.92, 0.14),
        "unetpp-ds": (89.33, 0.10)},
    "Nuclei": {
        "unet": (90.57, 1.26), "wide-unet": (90.47, 1.15), "unetp": (91.73, 1.09),
        "unetp-ds": (92.04, 0.89), "unetpp": (92.44, 1.20), "unetpp-ds": (92.37, 0.98)},
    "Lung Nodule": {
        "unet": (71.17, 4.53), "wide-unet": (73.12, 3.99), "unetp": (75.93, 2.93),
        "unetp-ds": (76.72, 2.48), "unetpp": (76.24, 3.11), "unetpp-ds": (77.05, 2.42)},
}

# Table VI, in the order of the measures: U-Net, UNet++ with deep supervision, p-value.
MEASURES = {"sensitivity": "sensitivity", "specificity": "specificity", "f1": "F1", "f2": "F2"}
TABLE_6: dict[str, tuple[tuple[Printed, ...], tuple[Printed, ...], tuple[float, ...]]] = {
    "EM": (((91.21, 2.18), (83.55, 1.62), (87.21, 1.88), (89.56, 2.06)),
           ((92.87, 2.08), (84.94, 1.55), (88.73, 1.79), (91.17, 1.96)),
           (0.018, 0.008, 0.013, 0.016)),
    "Nuclei": (((93.57, 4.30), (93.94, 0.87), (83.64, 2.97), (89.33, 3.71)),
               ((97.28, 4.85), (96.30, 0.94), (90.14, 3.82), (94.29, 4.41)),
               (0.015, 5.35e-10, 6.75e-7, 4.47e-4)),
    "Lung Nodule": (((94.95, 1.31), (97.27, 0.47), (83.98, 1.94), (90.24, 1.60)),
                    ((95.83, 0.86), (97.81, 0.40), (86.78, 1.66), (91.99, 1.22)),
                    (0.018, 3.25e-3, 1.92e-5, 4.27e-3)),
}

# Table V: nuclei over resnet101. IoU and Dice in per cent, the Data Science Bowl's score.
TABLE_5 = {"U-Net": (91.03, 75.73, 0.244), "UNet++": (92.55, 89.74, 0.327),
           "Mask R-CNN": (93.28, 87.91, 0.401), "Mask RCNN++": (95.10, 91.36, 0.414)}

"""What can be done to a volume before its intensities are windowed: `pip install -e '.[data]'`."""

import nibabel as nib
import numpy as np

BIAS_GRID_MM = 4.0  # a bias field is smooth; N4 on voxels of 1 mm finds the same one in an hour


def strip_skull(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A T1 volume (X, Y, Z) with all but the brain as dark as its darkest voxel.

    The brain is what the network of deepbet finds (Fisch et al., Computers in Biology and Medicine 2024), which comes
    with that package. It was trained on adults.
    """
    from deepbet.bet import BrainExtraction

    _, brain, _ = BrainExtraction().run(nib.Nifti1Image(data, affine))
    return np.where(np.asarray(brain.dataobj) > 0, data, data.min())


def correct_bias(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A volume (X, Y, Z) divided by its bias field, which N4 finds (Tustison et al., IEEE TMI 2010).

    A field multiplies what is above zero: where there are lower values, as in standardised volumes, the lowest is zero.
    The field is fitted where the volume is bright by Otsu's threshold, and has a mean of about 1 there.
    """
    import SimpleITK as sitk

    sizes, data = nib.affines.voxel_sizes(affine), data - min(0, data.min())
    volume = sitk.GetImageFromArray(data.transpose(2, 1, 0))  # of ITK's (x, y, z), in NumPy's order
    volume.SetSpacing(sizes.tolist())
    coarse = sitk.Shrink(volume, [max(1, round(BIAS_GRID_MM / size)) for size in sizes])
    bright = sitk.OtsuThreshold(coarse, 0, 1, 200)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)  # a build works on several volumes at a time
    n4.Execute(coarse, bright)
    field = np.exp(sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(volume)).transpose(2, 1, 0))
    return (data / field).astype(np.float32)

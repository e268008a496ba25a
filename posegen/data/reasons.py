"""The reasons for rejects and the notes, as they stand in `rejects.parquet` and in the manifest's counts."""

UNREADABLE = "unreadable file"
DAMAGED = "truncated or damaged image"
DUPLICATE = "duplicate name"
DISTRACTOR = "distractor"
NO_JOINTS = "no joint is visible"
NOT_ANNOTATED = "no joints"  # no annotation names the image
NO_IDENTITY = "no identity"
NOT_LISTED = "in no pair list"
UNSUPPORTED = "unsupported image format"
OTHER_SHAPE = "annotated for an image of another shape"
NOT_UTF8 = "file name that is no UTF-8"
NO_TORSO = "a shoulder or a hip is missing"
NOT_FINITE = "joints that are no finite coordinates"
NO_DISC = "pose map that is not drawn of discs"
NO_FRAME = "no such frame in the video"
NO_NUMBER = "no frame number of its own"
TOO_FEW_JOINTS = "too few joints for a person mask"
NOBODY = "no person found at the joints"

ALONE = "usable but alone in its group"
NO_IMAGE = "no image"  # an annotation, or a name in a pair list
NO_VIDEO = "no video"  # joints of a whole video
NO_CROP = "joints that no crop can hold"  # of a whole video
NO_SUBJECT = "subject without joints"
UNKNOWN_SUBJECT = "subject of neither split"
VIDEO_NOT_ANNOTATED = "video without joints"
NOT_CALIBRATED = "camera without calibration"  # of a whole video
PAIR_ACROSS_GROUPS = "pair across two groups"
PAIR_ACROSS_SPLITS = "pair across training and validation"
PAIR_OF_REJECTED = "pair of a rejected image"
# Reasons that do not reject an image: all others do.
NO_UNUSABLE_IMAGE = (
    *(ALONE, NO_IMAGE, NO_VIDEO, VIDEO_NOT_ANNOTATED, NOT_CALIBRATED, NO_CROP, NO_SUBJECT, UNKNOWN_SUBJECT),
    *(PAIR_ACROSS_GROUPS, PAIR_ACROSS_SPLITS, PAIR_OF_REJECTED),
)

# Notes of the manifest: images that are kept and counted.
RESIZED = "resized"
ENCODED_AGAIN = "encoded again at its size"
OUTSIDE = "joints outside the image"
LISTED_ANYWAY = "kept because a given pair names it"
NO_PERSON_MASK = "person mask unknown"
NO_AZIMUTH = "camera's azimuth unknown"
ESTIMATED_MASK = "person mask estimated"

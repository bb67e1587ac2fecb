"""DICOM in: files to series, a series to a volume, masks onto its grid, headers without a patient.

The only room for pydicom, highdicom and the pixel codecs. Their messages and warnings quote attribute
values, so none of them leaves this package: what is refused is said in RetroLN's own words, without values
that could name a patient.
"""

"""What becomes of drawn images: files and data sets that say they are synthetic and how they were made."""

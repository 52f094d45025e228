//! Still pictures from disk: opened with limits, turned upright, written with their mark.

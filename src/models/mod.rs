//! Model bundles: manifest, verification, the defaults inside the binary.

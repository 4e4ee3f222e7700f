//! Rules of rows and findings.

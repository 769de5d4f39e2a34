//! The operations that people ask for, and the reconcilers that keep them true.
//!
//! It decides; effects are the host's, wire formats are not known here.

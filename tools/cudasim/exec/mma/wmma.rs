//! `wmma`: to come.

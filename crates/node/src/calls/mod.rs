//! Calls: the node's side of middlecon.

mod rules;

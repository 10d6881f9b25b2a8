//! The order and the lines of a process tree.
//!
//! A process whose parent is not among the rows is a root, so a filtered table is a forest. Whatever
//! the rows say (a process that is its own parent, circles, numbers that stand twice), every row
//! comes out exactly once and nothing recurses.

use std::collections::HashMap;

/// Most levels for which lines are drawn; deeper rows stand at this depth.
pub const DEPTH_DRAWN_MAX: usize = 64;

/// One row in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its index among the rows that were given.
    pub index: usize,
    /// Its distance from its root.
    pub depth: usize,
    /// Bit `n` says that at depth `n` a sibling follows below, so that a line goes on there.
    continues: u64,
}

/// The characters that lines are drawn with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// `├─`, `└─`, `│`.
    Unicode,
    /// `|-`, `` `- ``, `|`.
    Ascii,
}

/// Puts rows, given as (number, parent's number), in tree order. Siblings keep the order of the rows.
pub fn order(rows: &[(i64, i64)]) -> Vec<Leaf> {
    let mut index_of: HashMap<i64, usize> = HashMap::with_capacity(rows.len());
    for (index, (pid, _)) in rows.iter().enumerate() {
        index_of.entry(*pid).or_insert(index);
    }
    let mut roots = Vec::new();
    let mut children: HashMap<usize, Vec<usize>> = HashMap::new();
    for (index, (_, ppid)) in rows.iter().enumerate() {
        match index_of.get(ppid) {
            Some(parent) if *parent != index => children.entry(*parent).or_default().push(index),
            _ => roots.push(index),
        }
    }
    let mut placed = vec![false; rows.len()];
    let mut leaves = Vec::with_capacity(rows.len());
    // What is in no root's tree hangs on a circle; it is entered at its first row.
    let entries = roots.into_iter().chain(0..rows.len());
    let mut stack: Vec<Leaf> = Vec::new();
    for root in entries {
        stack.push(Leaf { index: root, depth: 0, continues: 0 });
        while let Some(leaf) = stack.pop() {
            if std::mem::replace(&mut placed[leaf.index], true) {
                continue;
            }
            leaves.push(leaf);
            let Some(below) = children.remove(&leaf.index) else { continue };
            let depth = leaf.depth + 1;
            // A row that is placed already closes a circle and is drawn no second time.
            let mut last = true;
            for child in below.into_iter().rev().filter(|child| !placed[*child]) {
                let bit = if last || depth > DEPTH_DRAWN_MAX { 0 } else { 1 << (depth - 1) };
                stack.push(Leaf { index: child, depth, continues: leaf.continues | bit });
                last = false;
            }
        }
    }
    leaves
}

impl Leaf {
    /// The lines in front of the row; empty for a root.
    pub fn prefix(&self, lines: Lines) -> String {
        let (branch, end, down) = match lines {
            Lines::Unicode => ("├─ ", "└─ ", "│  "),
            Lines::Ascii => ("|- ", "`- ", "|  "),
        };
        let depth = self.depth.min(DEPTH_DRAWN_MAX);
        let mut prefix = String::with_capacity(depth * down.len());
        for level in 1..=depth {
            let goes_on = self.continues >> (level - 1) & 1 == 1;
            prefix.push_str(match (level == depth, goes_on) {
                (true, true) => branch,
                (true, false) => end,
                (false, true) => down,
                (false, false) => "   ",
            });
        }
        prefix
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(rows: &[(i64, i64)]) -> String {
        let line = |leaf: &Leaf| format!("{}{}", leaf.prefix(Lines::Ascii), rows[leaf.index].0);
        order(rows).iter().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn trees() {
        let cases: [(&[(i64, i64)], &str); 8] = [
            (&[], ""),
            (&[(1, 0)], "1"),
            (&[(1, 0), (2, 0), (3, 1), (4, 3), (5, 1)], "1\n|- 3\n|  `- 4\n`- 5\n2"),
            // Orphans: the parent is not among the rows.
            (&[(7, 3), (8, 7)], "7\n`- 8"),
            // The order of the rows, not of the numbers.
            (&[(9, 1), (1, 0), (3, 1)], "1\n|- 9\n`- 3"),
            // Its own parent; a circle; a tail on a circle.
            (&[(5, 5)], "5"),
            (&[(2, 3), (3, 2)], "2\n`- 3"),
            (&[(1, 0), (6, 4), (4, 5), (5, 4)], "1\n6\n4\n`- 5"),
        ];
        for (rows, want) in cases {
            let mut found = order(rows).iter().map(|leaf| leaf.index).collect::<Vec<_>>();
            found.sort_unstable();
            assert_eq!(found, (0..rows.len()).collect::<Vec<_>>(), "each row once: {rows:?}");
            assert_eq!(drawn(rows), want, "for {rows:?}");
        }
    }

    #[test]
    fn a_number_that_stands_twice_loses_no_row() {
        assert_eq!(order(&[(1, 0), (1, 0), (2, 1)]).len(), 3);
    }

    #[test]
    fn a_long_chain_neither_recurses_nor_grows_its_lines() {
        let rows: Vec<_> = (1..=100_000).map(|pid| (pid, pid - 1)).collect();
        let leaves = order(&rows);
        assert_eq!(leaves[99_999].depth, 99_999);
        assert_eq!(leaves[99_999].prefix(Lines::Ascii).len(), 3 * DEPTH_DRAWN_MAX);
    }
}

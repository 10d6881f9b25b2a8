//! Where a benchmark writes its results: between two markers of a document that people write.

fn markers(benchmark: &str) -> [String; 2] {
    ["begin", "end"].map(|edge| format!("<!-- {benchmark}: {edge} -->"))
}

/// `document` with `text` between the markers of `benchmark`; at its end if it has none.
pub fn place(document: &str, benchmark: &str, text: &str) -> String {
    let [begin, end] = markers(benchmark);
    let block = format!("{begin}\n{}\n{end}\n", text.trim_end());
    match (document.find(&begin), document.find(&end)) {
        (Some(from), Some(to)) if from < to => {
            let rest = document[to + end.len()..].trim_start_matches('\n');
            let gap = if rest.is_empty() { "" } else { "\n" };
            format!("{}{block}{gap}{rest}", &document[..from])
        }
        _ => format!("{}\n\n{block}", document.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_is_replaced_and_the_rest_kept() {
        let [begin, end] = markers("b");
        let first = place("# Title\n", "b", "one");
        assert_eq!(first, format!("# Title\n\n{begin}\none\n{end}\n"));
        let second = place(&format!("{first}\nAfter.\n"), "b", "two\n");
        assert_eq!(second, format!("# Title\n\n{begin}\ntwo\n{end}\n\nAfter.\n"));
        assert_eq!(place(&second, "b", "two"), second);
        let other = place(&second, "c", "three");
        assert_eq!(place(&other, "b", "two"), other, "that of another is left alone");
    }
}

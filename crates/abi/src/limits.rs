//! Every limit that two processes share, with the reason for its number.

/// Longest text of one query parameter. A CEL filter of a page of text is still well below it.
pub const QUERY_TEXT_BYTES_MAX: usize = 8 * 1024;

/// Most columns that one query may select. All columns of the widest table fit twice.
pub const QUERY_COLUMNS_MAX: usize = 256;

/// Most sort keys; a person cannot see the effect of more.
pub const QUERY_SORT_KEYS_MAX: usize = 16;

/// Most columns to group by.
pub const QUERY_GROUP_COLUMNS_MAX: usize = 8;

/// Deepest nesting of a filter. It bounds the stack of the parser and the evaluator.
pub const FILTER_DEPTH_MAX: usize = 64;

/// Longest compiled regular expression in a filter.
pub const FILTER_REGEX_BYTES_MAX: usize = 256 * 1024;

/// Most regular expressions in one filter: with the limit above, 4 MiB of them.
pub const FILTER_REGEXES_MAX: usize = 16;

/// Most seconds that an answer may be old when a request asks for `max_age_ms`.
pub const MAX_AGE_MS_MAX: u64 = 60_000;

/// Longest command line that is returned. The kernel itself allows 6 MiB (three quarters of the
/// largest stack), so no line is cut.
pub const CMDLINE_BYTES_MAX: usize = 8 * 1024 * 1024;

//! What a client is willing to read: the `Accept` header.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};

use super::problem::Refused;

/// The best of `offered` for this request: what it likes most, and of equals the one that stands
/// first. Without an `Accept` header that is the first.
///
/// # Errors
/// 406 where it refuses them all.
pub fn choose(
    headers: &HeaderMap,
    offered: &'static [&'static str],
) -> Result<&'static str, Refused> {
    let accept = headers.get_all(header::ACCEPT).iter().map(HeaderValue::as_bytes);
    let accept: Vec<_> = accept.map(String::from_utf8_lossy).collect();
    if accept.is_empty() {
        return Ok(offered[0]);
    }
    best(&accept.join(","), offered).ok_or_else(|| {
        let detail = format!("this address answers in {}", offered.join(" or "));
        let title = "The answer is not available in an acceptable form";
        Refused::new(StatusCode::NOT_ACCEPTABLE, "not-acceptable", title, detail)
    })
}

fn best(accept: &str, offered: &'static [&'static str]) -> Option<&'static str> {
    let ranges: Vec<Range<'_>> = accept.split(',').filter_map(Range::parse).collect();
    let quality = |offer: &str| {
        let fitting = ranges.iter().filter_map(|range| Some((range.fit(offer)?, range.quality)));
        // The most specific range decides, RFC 9110 section 12.5.1.
        fitting.max_by_key(|(fit, _)| *fit).map_or(0, |(_, quality)| quality)
    };
    let rated = offered.iter().rev().map(|offer| (quality(offer), *offer));
    let (quality, offer) = rated.max_by_key(|(quality, _)| *quality)?;
    (quality > 0).then_some(offer)
}

/// One media range: `application/*;q=0.5`.
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    /// Thousandths.
    quality: u16,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Range<'a>> {
        let mut parts = text.split(';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        let quality = parts.find_map(|part| {
            let (key, value) = part.split_once('=')?;
            key.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().ok())?
        });
        let quality = (quality.unwrap_or(1.0).clamp(0.0, 1.0) * 1000.0) as u16;
        Some(Range { kind, subtype, quality })
    }

    /// How specifically this range names `offer`; `None` if it does not.
    fn fit(&self, offer: &str) -> Option<u8> {
        let (kind, subtype) = offer.split_once('/')?;
        match (self.kind, self.subtype) {
            ("*", "*") => Some(0),
            (want, "*") if want.eq_ignore_ascii_case(kind) => Some(1),
            (want, exact)
                if want.eq_ignore_ascii_case(kind) && exact.eq_ignore_ascii_case(subtype) =>
            {
                Some(2)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_form_is_chosen() {
        const JSON: &str = "application/json";
        const LINES: &str = "application/x-ndjson";
        let cases = [
            ("*/*", Some(JSON)),
            ("application/*", Some(JSON)),
            ("APPLICATION/X-NDJSON", Some(LINES)),
            ("application/x-ndjson, application/json", Some(JSON)),
            ("application/json;q=0.5, application/x-ndjson", Some(LINES)),
            ("*/*;q=0.1, application/x-ndjson;q=0.2", Some(LINES)),
            ("application/json;q=0, */*", Some(LINES)),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Some(JSON)),
            ("text/html", None),
            ("application/json; charset=utf-8 ; Q=0", None),
            ("", None),
            ("nonsense", None),
        ];
        for (accept, want) in cases {
            assert_eq!(best(accept, &[JSON, LINES]), want, "for {accept:?}");
        }
    }
}

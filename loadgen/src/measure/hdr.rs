//! Histograms as text: HdrHistogram V2, deflated, base64 (`HISTF...`), the format that every port of the library reads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2DeflateSerializer};

/// Counts are 32 bits wide: no phase has a billion requests.
pub(crate) type Counts = Histogram<u32>;

/// Encodes a histogram; an empty one becomes the empty text.
pub(crate) fn encode(histogram: &Counts) -> String {
    if histogram.is_empty() {
        return String::new();
    }
    let mut bytes = Vec::new();
    // Writing into memory fails only for counts beyond 2^63.
    V2DeflateSerializer::new().serialize(histogram, &mut bytes).expect("counts fit");
    STANDARD.encode(bytes)
}

/// Decodes a histogram; `None` for the empty text.
pub(crate) fn decode(text: &str) -> Result<Option<Counts>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let bytes = STANDARD.decode(text).map_err(|e| format!("a histogram is not base64: {e}"))?;
    let histogram = Deserializer::new().deserialize(&mut bytes.as_slice());
    histogram.map(Some).map_err(|e| format!("not a histogram: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sigfig: u8, values: impl Iterator<Item = u64>) -> Counts {
        let mut h = Counts::new_with_bounds(1, 60_000_000_000, sigfig).unwrap();
        values.for_each(|v| h.record(v).unwrap());
        h
    }

    #[test]
    fn an_encoded_histogram_decodes_to_itself() {
        let h = of(3, (1..5000).map(|i| i * i * 37));
        let text = encode(&h);
        assert!(text.starts_with("HISTF"), "{}", &text[..8]);
        assert_eq!(decode(&text).unwrap().unwrap(), h);
        assert_eq!(encode(&of(3, std::iter::empty())), "");
        assert!(decode("").unwrap().is_none());
        // Not base64, a short header, another format, and a text that is cut off.
        for bad in ["?", "HISTFAAAA", "AAAA", &text[..text.len() / 2]] {
            assert!(decode(bad).is_err(), "{bad}");
        }
    }
}

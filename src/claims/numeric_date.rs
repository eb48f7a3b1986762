//! A `NumericDate` with milliseconds (RFC 7519 section 2 allows a fraction).

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

use crate::clock::Time;

/// The largest whole number that every reader of JSON understands alike (RFC 7493 section 2.2).
pub(super) const LARGEST: u64 = (1 << 53) - 1;

/// A point in time, in milliseconds since 1970. Written as JSON seconds with three decimals at most; what is finer is rounded when it is
/// read. It is never before 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NumericDate(i64);

impl NumericDate {
    /// The point in time, or `None` before 1970 and past what JSON can say.
    #[must_use]
    pub fn from_millis(millis: i64) -> Option<Self> {
        let seconds = u64::try_from(millis).ok()? / 1000;
        (seconds < LARGEST).then_some(Self(millis))
    }

    /// The same point in time, to the millisecond.
    #[must_use]
    pub fn of(time: Time) -> Option<Self> {
        Self::from_millis(time.timestamp_millis())
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn millis(self) -> i64 {
        self.0
    }
}

impl Serialize for NumericDate {
    #[expect(clippy::cast_precision_loss, reason = "below the year 9999 a number of milliseconds has 15 digits")]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 % 1000 {
            0 => serializer.serialize_i64(self.0 / 1000),
            _ => serializer.serialize_f64(self.0 as f64 / 1000.0),
        }
    }
}

impl<'de> Deserialize<'de> for NumericDate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seconds;
        impl de::Visitor<'_> for Seconds {
            type Value = NumericDate;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("seconds since 1970")
            }
            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<NumericDate, E> {
                let millis = i64::try_from(seconds).ok().and_then(|seconds| seconds.checked_mul(1000));
                let date = millis.and_then(NumericDate::from_millis);
                date.ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(seconds), &self))
            }
            #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "it is in range")]
            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<NumericDate, E> {
                let date = (0.0..LARGEST as f64).contains(&seconds).then(|| (seconds * 1000.0).round() as i64);
                let date = date.and_then(NumericDate::from_millis);
                date.ok_or_else(|| E::invalid_value(de::Unexpected::Float(seconds), &self))
            }
        }
        deserializer.deserialize_any(Seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_three_decimals_at_most_and_is_read_as_it_was_written() {
        for (millis, text) in
            [(0, "0"), (1, "0.001"), (1_732_190_405_000, "1732190405"), (1_732_190_405_120, "1732190405.12")]
        {
            let date = NumericDate::from_millis(millis).unwrap();
            assert_eq!(serde_json::to_string(&date).unwrap(), text);
            assert_eq!(serde_json::from_str::<NumericDate>(text).unwrap(), date);
        }
        for millis in (1_732_190_405_000..1_732_190_407_000).chain(253_402_300_799_000..253_402_300_800_000) {
            let text = serde_json::to_string(&NumericDate(millis)).unwrap();
            assert!(text.split_once('.').is_none_or(|(_, decimals)| decimals.len() <= 3), "{text}");
            assert_eq!(serde_json::from_str::<NumericDate>(&text).unwrap(), NumericDate(millis), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for bad in
            ["-1", "-0.5", "9007199254740991", "9007199254740992", "1e308", "1e999", "\"1\"", "null", "true", "[1]"]
        {
            assert!(serde_json::from_str::<NumericDate>(bad).is_err(), "{bad}");
        }
        assert_eq!(serde_json::from_str::<NumericDate>("1.0006").unwrap(), NumericDate(1001));
        assert_eq!(NumericDate::from_millis(-1), None);
    }
}

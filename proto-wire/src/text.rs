//! Values that stand as text on the wire and in JSON.
//!
//! Owns: their conversions, which serde needs. Must not know: which text is valid. Driven by: names, addresses, rules.

/// Converts a type from and to its text by `FromStr`, whose error is the second argument, and `Display`.
macro_rules! by_text {
    ($type:ty, $error:ty) => {
        impl TryFrom<String> for $type {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, $error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    };
}

pub(crate) use by_text;

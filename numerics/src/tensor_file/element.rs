//! Element types as tensor files spell them.

use candle_core::DType;

/// Name in the file, bits per element, and the type in memory, if it can be read.
const ELEMENTS: [(&str, usize, Option<DType>); 19] = [
    ("F64", 64, Some(DType::F64)),
    ("F32", 32, Some(DType::F32)),
    ("F16", 16, Some(DType::F16)),
    ("BF16", 16, Some(DType::BF16)),
    ("I64", 64, Some(DType::I64)),
    ("I32", 32, Some(DType::I32)),
    ("I16", 16, Some(DType::I16)),
    ("U32", 32, Some(DType::U32)),
    ("U8", 8, Some(DType::U8)),
    ("BOOL", 8, Some(DType::U8)),
    ("F8_E4M3", 8, None),
    ("F8_E5M2", 8, None),
    ("F8_E8M0", 8, None),
    ("C64", 64, None),
    ("U64", 64, None),
    ("U16", 16, None),
    ("I8", 8, None),
    ("F6_E2M3", 6, None),
    ("F4", 4, None),
];

/// An element type of the safetensors format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) name: &'static str,
    pub(super) bits: usize,
    pub(super) dtype: Option<DType>,
}

impl Element {
    /// The element type with the name `name`.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::find(|(known, _, _)| *known == name)
    }

    /// The element type for `dtype`, if the format has one.
    pub(super) fn of(dtype: DType) -> Option<Self> {
        Self::find(|(_, _, known)| *known == Some(dtype))
    }

    fn find(wanted: impl Fn(&(&'static str, usize, Option<DType>)) -> bool) -> Option<Self> {
        let found = ELEMENTS.iter().find(|element| wanted(element));
        found.map(|(name, bits, dtype)| Self { name, bits: *bits, dtype: *dtype })
    }
}

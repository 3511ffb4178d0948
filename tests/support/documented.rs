//! The bytes that docs/FORMAT.md shows.

/// The bytes of a block of hexadecimal digits.
pub(crate) fn documented(kind: &str) -> Vec<u8> {
    let document = include_str!("../../docs/FORMAT.md");
    let (_, block) = document.split_once(&format!("```{kind}\n")).unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let digits: String = block.split_whitespace().collect();
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

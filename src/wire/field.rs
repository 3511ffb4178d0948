//! Fields of a fixed size, as the tables of commands and of stream messages list them.

/// A field of a fixed size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name, as docs/GBP.md writes it.
    pub name: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// Notation for people.
    pub form: Form,
}

/// Notation of a field's bytes for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An unsigned number, in decimal.
    Number,
    /// A signed number in two's complement, in decimal.
    Signed,
    /// A number whose size says nothing, such as a hash, in hexadecimal.
    Hex,
    /// One byte of flags: the name of each bit that has one, by its mask.
    Flags(&'static [(u8, &'static str)]),
    /// One byte that stands for one of these names, counted from 0.
    Choice(&'static [&'static str]),
    /// The length in bytes of the field with this name, which stands behind the operands.
    Length(&'static str),
}

impl Field {
    /// An unsigned number of `size` bytes.
    #[must_use]
    pub const fn number(name: &'static str, size: usize) -> Field {
        let form = Form::Number;
        Field { name, size, form }
    }

    /// A signed number of `size` bytes.
    #[must_use]
    pub const fn signed(name: &'static str, size: usize) -> Field {
        let form = Form::Signed;
        Field { name, size, form }
    }

    /// A number of `size` bytes that is written in hexadecimal.
    #[must_use]
    pub const fn hex(name: &'static str, size: usize) -> Field {
        let form = Form::Hex;
        Field { name, size, form }
    }

    /// A byte of flags.
    #[must_use]
    pub const fn flags(name: &'static str, bits: &'static [(u8, &'static str)]) -> Field {
        let (size, form) = (1, Form::Flags(bits));
        Field { name, size, form }
    }

    /// A byte that stands for one of `names`, counted from 0.
    #[must_use]
    pub const fn choice(name: &'static str, names: &'static [&'static str]) -> Field {
        let (size, form) = (1, Form::Choice(names));
        Field { name, size, form }
    }

    /// A length of `size` bytes, of the field `of` behind the operands.
    #[must_use]
    pub const fn length(name: &'static str, size: usize, of: &'static str) -> Field {
        let form = Form::Length(of);
        Field { name, size, form }
    }

    /// Bytes of all of `fields`.
    #[must_use]
    pub const fn total(fields: &[Field]) -> usize {
        let (mut at, mut total) = (0, 0);
        while at < fields.len() {
            total += fields[at].size;
            at += 1;
        }
        total
    }
}

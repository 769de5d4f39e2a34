//! One structure of the table (DSP0134, 6.1): a formatted part, then the texts that it refers to by number.

/// A structure that is being written.
pub(super) struct Structure {
    formatted: Vec<u8>,
    texts: Vec<u8>,
    texts_count: u8,
}

impl Structure {
    pub(super) fn new(kind: u8, index: u8) -> Self {
        let structure = Self { formatted: vec![kind, 0], texts: Vec::new(), texts_count: 0 };
        structure.word(handle(kind, index))
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.formatted.extend_from_slice(bytes);
        self
    }

    pub(super) fn zeroes(mut self, count: usize) -> Self {
        self.formatted.resize(self.formatted.len() + count, 0);
        self
    }

    pub(super) fn byte(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    pub(super) fn word(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn dword(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn qword(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn text(mut self, text: &str) -> Self {
        self.texts.extend_from_slice(text.as_bytes());
        self.texts.push(0);
        self.texts_count += 1;
        let number = self.texts_count;
        self.byte(number)
    }

    pub(super) fn no_text(self) -> Self {
        self.byte(0)
    }

    pub(super) fn optional_text(self, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.text(text),
            None => self.no_text(),
        }
    }

    pub(super) fn append_to(mut self, table: &mut Vec<u8>) {
        let len = u8::try_from(self.formatted.len()).unwrap_or(u8::MAX); // 48 at most
        if let Some(length) = self.formatted.get_mut(LENGTH_OFFSET) {
            *length = len;
        }
        table.append(&mut self.formatted);
        if self.texts.is_empty() {
            self.texts.push(0);
        }
        self.texts.push(0);
        table.append(&mut self.texts);
    }
}

/// The number by which structures refer to each other.
pub(super) fn handle(kind: u8, index: u8) -> u16 {
    u16::from(kind) << 8 | u16::from(index)
}

const LENGTH_OFFSET: usize = 1;

//! GRUB configurations in the shape that distributions write them.

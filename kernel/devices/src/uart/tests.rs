//! The 16550A as the data sheet and Linux's 8250 driver use it.

use super::spec::*;
use super::*;

const NOW: GuestTime = GuestTime(1000);

/// A port with FIFOs on, trigger level 8, 8n1 at 115 200, interrupts connected.
fn open() -> Uart {
    let mut uart = Uart::default();
    uart.write(NOW, LINE_CONTROL, 0x03);
    uart.write(NOW, FIFO_CONTROL, 0x81);
    uart.write(NOW, MODEM_CONTROL, 0x0b);
    uart
}

#[test]
fn linux_finds_a_16550a() {
    let mut uart = Uart::default();
    // autoconfig(): only the four defined bits of the interrupt enable register stick.
    uart.write(NOW, INTERRUPT_ENABLE, 0);
    assert_eq!(uart.read(NOW, INTERRUPT_ENABLE), 0);
    uart.write(NOW, INTERRUPT_ENABLE, 0xff);
    assert_eq!(uart.read(NOW, INTERRUPT_ENABLE), 0x0f);
    uart.write(NOW, INTERRUPT_ENABLE, 0);
    // In loopback OUT2 and RTS come back as DCD and CTS.
    uart.write(NOW, MODEM_CONTROL, 0x1a);
    assert_eq!(uart.read(NOW, MODEM_STATUS) & 0xf0, 0x90);
    uart.write(NOW, MODEM_CONTROL, 0);
    // The extended feature register of later chips would read as 0.
    uart.write(NOW, LINE_CONTROL, 0xbf);
    assert_ne!(uart.read(NOW, INTERRUPT_ID), 0);
    uart.write(NOW, LINE_CONTROL, 0);
    uart.write(NOW, FIFO_CONTROL, 0x01);
    assert_eq!(uart.read(NOW, INTERRUPT_ID) >> 6, 3);
    // No 64-byte FIFO.
    uart.write(NOW, LINE_CONTROL, 0x80);
    uart.write(NOW, FIFO_CONTROL, 0x21);
    assert_eq!(uart.read(NOW, INTERRUPT_ID) & 0x20, 0);
    uart.write(NOW, LINE_CONTROL, 0);
    uart.write(NOW, FIFO_CONTROL, 0);
    assert_eq!(uart.read(NOW, INTERRUPT_ID), 0x01);
    uart.write(NOW, SCRATCH, 0x5a);
    assert_eq!(uart.read(NOW, SCRATCH), 0x5a);
}

#[test]
fn the_divisor_lies_behind_dlab() {
    let mut uart = open();
    uart.write(NOW, LINE_CONTROL, 0x83);
    assert_eq!(uart.write(NOW, DATA, 0x34), None);
    uart.write(NOW, INTERRUPT_ENABLE, 0x12);
    assert_eq!(uart.read(NOW, DATA), 0x34);
    assert_eq!(uart.read(NOW, INTERRUPT_ENABLE), 0x12);
    uart.write(NOW, LINE_CONTROL, 0x03);
    assert_eq!(uart.read(NOW, INTERRUPT_ENABLE), 0);
    assert_eq!(uart.read(NOW, LINE_CONTROL), 0x03);
}

#[test]
fn a_polling_console_always_finds_the_transmitter_empty() {
    let mut uart = open();
    for byte in *b"Linux version" {
        assert_eq!(uart.read(NOW, LINE_STATUS) & 0x60, 0x60);
        assert_eq!(uart.write(NOW, DATA, byte), Some(byte));
    }
    assert!(!uart.interrupt());
}

#[test]
fn an_empty_transmitter_is_told_once_and_again_when_enabled() {
    let mut uart = open();
    uart.write(NOW, INTERRUPT_ENABLE, 0x02);
    assert!(uart.interrupt());
    assert_eq!(uart.read(NOW, INTERRUPT_ID), 0xc2);
    // Reading the identification has cleared it.
    assert!(!uart.interrupt());
    assert_eq!(uart.read(NOW, INTERRUPT_ID), 0xc1);
    // Linux tests for chips that do not tell it again (UART_BUG_THRE).
    uart.write(NOW, INTERRUPT_ENABLE, 0);
    uart.write(NOW, INTERRUPT_ENABLE, 0x02);
    assert_eq!(uart.read(NOW, INTERRUPT_ID), 0xc2);
    // Rewriting the same value tells nothing, a byte sent does.
    uart.write(NOW, INTERRUPT_ENABLE, 0x02);
    assert!(!uart.interrupt());
    uart.write(NOW, DATA, b'x');
    assert!(uart.interrupt());
}

#[test]
fn received_bytes_interrupt_at_the_trigger_level() {
    let mut uart = open();
    uart.write(NOW, INTERRUPT_ENABLE, 0x01);
    assert_eq!(uart.receive(NOW, b"1234567"), 7);
    assert!(!uart.interrupt());
    assert_eq!(uart.receive(NOW, b"8"), 1);
    assert!(uart.interrupt());
    assert_eq!(uart.read(NOW, INTERRUPT_ID), 0xc4);
    // Without OUT2 the line is not connected.
    uart.write(NOW, MODEM_CONTROL, 0x03);
    assert!(!uart.interrupt());
    uart.write(NOW, MODEM_CONTROL, 0x0b);
    assert!(uart.interrupt());
    assert_eq!(uart.read(NOW, DATA), b'1');
    // Below the level the interrupt goes, the data does not.
    assert!(!uart.interrupt());
    assert_eq!(uart.read(NOW, LINE_STATUS) & 1, 1);
}

#[test]
fn a_single_key_is_told_after_four_characters_of_silence() {
    let mut uart = open();
    uart.write(NOW, INTERRUPT_ENABLE, 0x01);
    uart.receive(NOW, b"a");
    // 4 characters of 10 bits at 115 200 bit/s.
    let deadline = uart.deadline().unwrap();
    assert_eq!(deadline.since(NOW), 4 * 10 * 78_125 / 9);
    uart.advance(GuestTime(deadline.0 - 1));
    assert!(!uart.interrupt());
    uart.advance(deadline);
    assert!(uart.interrupt());
    assert_eq!(uart.deadline(), None);
    assert_eq!(uart.read(deadline, INTERRUPT_ID), 0xcc);
    assert_eq!(uart.read(deadline, DATA), b'a');
    assert!(!uart.interrupt());
    assert_eq!(uart.read(deadline, LINE_STATUS), 0x60);
}

#[test]
fn typing_ahead_waits_in_front_of_the_fifo_up_to_a_limit() {
    let mut uart = open();
    let text: alloc::vec::Vec<u8> = (0..2000u32).map(|i| (i % 251) as u8).collect();
    let accepted = uart.receive(NOW, &text);
    // Accepted before the receiver takes its share.
    assert_eq!(accepted, INPUT_BYTES);
    assert_eq!(uart.receive(NOW, &text[accepted..]), FIFO_BYTES);
    for byte in &text[..INPUT_BYTES + FIFO_BYTES] {
        assert_eq!(uart.read(NOW, LINE_STATUS), 0x61);
        assert_eq!(uart.read(NOW, DATA), *byte);
    }
    assert_eq!(uart.read(NOW, LINE_STATUS), 0x60);
}

#[test]
fn loopback_returns_bytes_and_overruns() {
    let mut uart = open();
    uart.write(NOW, MODEM_CONTROL, 0x10);
    uart.write(NOW, INTERRUPT_ENABLE, 0x05);
    for byte in 0..17 {
        assert_eq!(uart.write(NOW, DATA, byte), None);
    }
    // The line status has the highest priority; the interrupt pin is disconnected.
    assert_eq!(uart.read(NOW, INTERRUPT_ID), 0xc6);
    assert!(!uart.interrupt());
    assert_eq!(uart.read(NOW, LINE_STATUS), 0x63);
    assert_eq!(uart.read(NOW, LINE_STATUS), 0x61);
    assert_eq!(uart.read(NOW, INTERRUPT_ID), 0xc4);
    for byte in 0..16 {
        assert_eq!(uart.read(NOW, DATA), byte);
    }
    assert_eq!(uart.read(NOW, INTERRUPT_ID), 0xc1);
    // Without FIFOs the second byte replaces the first.
    uart.write(NOW, FIFO_CONTROL, 0);
    uart.write(NOW, DATA, 1);
    uart.write(NOW, DATA, 2);
    assert_eq!(uart.read(NOW, LINE_STATUS), 0x63);
    assert_eq!(uart.read(NOW, DATA), 2);
}

#[test]
fn modem_lines_report_changes_once() {
    let mut uart = open();
    uart.write(NOW, INTERRUPT_ENABLE, 0x08);
    assert_eq!(uart.read(NOW, MODEM_STATUS), 0xb0);
    uart.write(NOW, MODEM_CONTROL, 0x14);
    assert_eq!(uart.read(NOW, INTERRUPT_ID), 0xc0);
    // CTS, DSR, DCD fell; RI rose, which is no trailing edge.
    assert_eq!(uart.read(NOW, MODEM_STATUS), 0x4b);
    assert_eq!(uart.read(NOW, MODEM_STATUS), 0x40);
    uart.write(NOW, MODEM_CONTROL, 0x08);
    assert_eq!(uart.read(NOW, MODEM_STATUS), 0xbf);
    assert!(!uart.interrupt());
}

#[test]
fn clearing_the_fifo_drops_what_is_in_it() {
    let mut uart = open();
    uart.receive(NOW, &[7; 16]);
    uart.write(NOW, FIFO_CONTROL, 0x83);
    assert_eq!(uart.read(NOW, LINE_STATUS), 0x60);
    uart.write(NOW, INTERRUPT_ENABLE, 0x0f);
    assert_eq!(uart.deadline(), None);
}

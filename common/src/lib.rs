//! The pure heart of Doorbell: what things are, what is decided about them, and how they are
//! written on the wire.
//!
//! Nothing here awaits, reads a clock, draws a random number or opens a socket: time and chance
//! come in as arguments, decisions go out as values. The services join these decisions to the
//! plumbing of `doorbell-platform`.

pub mod ack;
pub mod address;
pub mod api_key;
pub mod asymmetric;
pub mod attempt;
pub mod breaker;
pub mod catalogue;
pub mod duration;
pub mod event;
pub mod fair;
pub mod fan_out;
pub mod filter;
pub mod gate;
pub mod held;
pub mod ids;
pub mod intake;
pub mod json;
pub mod next_move;
pub mod operational;
pub mod outcome;
pub mod pattern;
pub mod payload;
pub mod rate;
pub mod removal;
pub mod retry;
pub mod rung;
pub mod sealing;
pub mod sideline;
pub mod signature;
pub mod subscription;
pub mod template;
pub mod tenant_limits;
pub mod text;
pub mod time;
pub mod verification;
pub mod window;
pub mod wire;
pub mod work;

//! The transmission control block as it can be shown: to a developer, or as `TCP_INFO`. Changes nothing.

use super::{Config, Tcb};
use crate::event::TcbView;

impl Tcb {
    /// The variables as they are now.
    pub(crate) fn view(&self, config: &Config) -> TcbView {
        TcbView {
            state: self.state,
            iss: self.iss,
            irs: self.irs,
            snd_una: self.snd_una,
            snd_nxt: self.snd_nxt,
            snd_wnd: self.snd_wnd,
            rcv_nxt: self.rcv_nxt,
            rcv_wnd: self.rcv_adv.max(self.rcv_nxt).distance(self.rcv_nxt),
            snd_shift: self.snd_shift,
            rcv_shift: self.rcv_shift,
            mss: self.mss,
            timestamps: self.timestamps,
            sack_permitted: self.sack_permitted,
            unsent: self.unsent(),
            cwnd: self.congestion.window(),
            ssthresh: self.congestion.threshold(),
            srtt: self.rtt.smoothed(),
            rto: self.rtt.timeout(config),
            retries: self.work.retries,
        }
    }
}

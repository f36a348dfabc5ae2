package transport

import (
	"context"
	"net/http"
	"time"

	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/metrics"
	"quorate/internal/transport/peerapi"
)

const (
	probeReport       = 30 * time.Second // between reports about a healthy peer
	probeReportSick   = 5 * time.Second  // the first about an unhealthy one;
	probeReportMax    = 5 * time.Minute  // the interval doubles up to this
	maxClockDiff      = time.Second
	probeSmoothing    = 8 // a new round trip time has a weight of one eighth
	probeRequestLimit = readTimeout
)

// probe periodically checks the health of the peer, and reports round trip
// time and clock difference. name identifies the client c in the log.
func (p *peer) probe(name string, c *http.Client) {
	rttSeconds := metrics.NetworkPeerRoundTripTimeSeconds.WithLabelValues(p.name)
	tick := clock.NewTicker(clock.System, probePeriod)
	defer tick.Stop()
	var (
		srtt     time.Duration
		reported time.Time
		sick     = probeReportSick
	)
	for {
		select {
		case <-tick.C:
		case <-p.ctx.Done():
			return
		}
		rtt, diff, err := p.probeOnce(c)
		if p.ctx.Err() != nil {
			return
		}
		if err == nil {
			if srtt == 0 {
				srtt = rtt
			}
			srtt += (rtt - srtt) / probeSmoothing
		}
		interval := probeReport
		if err != nil {
			interval = sick
		} else {
			sick = probeReportSick
		}
		if clock.Since(reported) < interval {
			continue
		}
		reported = clock.Now()
		lg := p.lg.With(zap.String("round-tripper-name", name), p.called(), zap.Duration("rtt", srtt))
		if err != nil {
			lg.Warn("prober detected unhealthy status", zap.Error(err))
			sick = min(2*sick, probeReportMax)
			continue
		}
		if diff.Abs() > maxClockDiff {
			lg.Warn("prober found high clock drift", zap.Duration("clock-drift", diff))
		}
		rttSeconds.Observe(srtt.Seconds())
	}
}

// probeOnce returns the round trip time and how far the peer's clock is ahead.
func (p *peer) probeOnce(c *http.Client) (rtt, diff time.Duration, err error) {
	u, err := p.urls.pick()
	if err != nil {
		return 0, 0, err
	}
	ctx, cancel := context.WithTimeout(p.ctx, probeRequestLimit)
	defer cancel()
	start := clock.Now()
	there, err := peerapi.Probe(ctx, c, u)
	if err != nil {
		return 0, 0, err
	}
	rtt = clock.Since(start)
	return rtt, there.Sub(start.Add(rtt / 2)), nil
}

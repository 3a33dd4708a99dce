package unitfile

import (
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"legion.dev/legion/internal/service"
)

// probeRows are Legion's own: how a service is asked whether it is ready, and
// whether it is well.
var probeRows = []row{
	{names: "X-ReadinessProbe", set: probe(func(s *service.Service) **service.Probe { return &s.Readiness })},
	{names: "X-LivenessProbe", set: probe(func(s *service.Service) **service.Probe { return &s.Liveness })},
	{names: "X-ReadinessProbePeriodSec X-ReadinessProbeTimeoutSec X-ReadinessProbeInitialDelaySec", set: probeTime(func(c *compiler) *service.Probe { return &c.readiness })},
	{names: "X-LivenessProbePeriodSec X-LivenessProbeTimeoutSec X-LivenessProbeInitialDelaySec", set: probeTime(func(c *compiler) *service.Probe { return &c.liveness })},
	{names: "X-ReadinessProbeFailureThreshold", set: probeThreshold(func(c *compiler) *service.Probe { return &c.readiness })},
	{names: "X-LivenessProbeFailureThreshold", set: probeThreshold(func(c *compiler) *service.Probe { return &c.liveness })},
}

// probe reads "http://HOST:PORT/PATH", "https://…", "tcp://HOST:PORT",
// "exec:COMMAND LINE" or "log:REGULAR EXPRESSION"; empty is none.
func probe(field func(*service.Service) **service.Probe) setter {
	return func(c *compiler, e Entry) error {
		if e.Value == "" {
			*field(&c.svc) = nil
			return nil
		}
		p, err := c.parseProbe(e.Value)
		if err == nil && p.Log != "" && strings.HasPrefix(e.Key, "X-Liveness") {
			err = fmt.Errorf("a log line can tell that a service is ready, not that it is well; use http, tcp or exec")
		}
		if err == nil {
			*field(&c.svc) = p
		}
		return err
	}
}

func (c *compiler) parseProbe(value string) (*service.Probe, error) {
	kind, rest, _ := strings.Cut(value, ":")
	switch kind {
	case "exec":
		list, err := ParseExec(strings.TrimSpace(rest), c.expand)
		if err != nil {
			return nil, err
		}
		if len(list) != 1 {
			return nil, fmt.Errorf("a probe has one command")
		}
		return &service.Probe{Exec: &list[0]}, nil
	case "log":
		text, err := c.expand(strings.TrimSpace(rest))
		if err == nil && text == "" {
			err = fmt.Errorf("log: needs a regular expression")
		}
		if err == nil {
			_, err = regexp.Compile(text)
		}
		if err != nil {
			return nil, err
		}
		return &service.Probe{Log: text}, nil
	case "http", "https", "tcp":
		text, err := c.expand(value)
		if err != nil {
			return nil, err
		}
		return urlProbe(text)
	}
	return nil, fmt.Errorf("%q is none of http://HOST:PORT/PATH, https://…, tcp://HOST:PORT, exec:COMMAND and log:EXPRESSION", value)
}

func urlProbe(text string) (*service.Probe, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	port := 0
	if text := u.Port(); text != "" {
		port, err = strconv.Atoi(text)
	} else if u.Scheme != "tcp" {
		port = map[string]int{"http": 80, "https": 443}[u.Scheme]
	}
	if err != nil || port < 1 || port > 65535 {
		return nil, fmt.Errorf("%q has no port from 1 to 65535", text)
	}
	if u.Scheme == "tcp" {
		return &service.Probe{TCP: &service.TCPProbe{Host: u.Hostname(), Port: port}}, nil
	}
	return &service.Probe{HTTP: &service.HTTPProbe{Scheme: u.Scheme, Host: u.Hostname(), Port: port, Path: u.RequestURI()}}, nil
}

func probeTime(field func(*compiler) *service.Probe) setter {
	return func(c *compiler, e Entry) error {
		var d time.Duration
		if err := span(func(*compiler) *time.Duration { return &d })(c, e); err != nil {
			return err
		}
		p := field(c)
		switch {
		case strings.HasSuffix(e.Key, "PeriodSec"):
			p.Period = d
		case strings.HasSuffix(e.Key, "TimeoutSec"):
			p.Timeout = d
		default:
			p.InitialDelay = d
		}
		return nil
	}
}

func probeThreshold(field func(*compiler) *service.Probe) setter {
	return func(c *compiler, e Entry) error {
		n, err := ParseUint(e.Value, 16)
		if err == nil && n == 0 {
			err = fmt.Errorf("it must be at least 1")
		}
		if err == nil {
			field(c).FailureThreshold = int(n)
		}
		return err
	}
}

// finishProbes joins the times with what is asked, wherever they stood.
func (c *compiler) finishProbes() {
	for _, p := range []struct{ to, times *service.Probe }{{c.svc.Readiness, &c.readiness}, {c.svc.Liveness, &c.liveness}} {
		if p.to != nil {
			p.to.Period, p.to.Timeout, p.to.InitialDelay, p.to.FailureThreshold = p.times.Period, p.times.Timeout, p.times.InitialDelay, p.times.FailureThreshold
		}
	}
}

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"

	"legion.dev/legion/internal/pki"
)

// keepCertificate renews the node's certificate before it ends, for as long as
// ctx lasts. New connections use the new one (client-go reads the file again).
// A certificate that somebody else looks after is left alone.
func keepCertificate(ctx context.Context, o Options, config *rest.Config, log *slog.Logger) {
	if o.Kubeconfig != "" || filepath.Clean(config.CertFile) != filepath.Join(filepath.Clean(o.Dir), pki.CertFile) {
		return
	}
	tell := teller(log, "the server's certificate authority")
	renew := func() error {
		if err := expired(o); err != nil {
			return comeBack(ctx, o, err, log)
		}
		if o.Bootstrap != "" {
			return renewInCluster(ctx, o, config, log)
		}
		client, err := rest.HTTPClientFor(rest.CopyConfig(config))
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		return pki.Renew(ctx, client, config.Host, o.Dir)
	}
	renewals(ctx, func() (time.Time, error) {
		cert, err := pki.StoredCertificate(o.Dir)
		if err != nil {
			return time.Time{}, err
		}
		return pki.RenewAt(cert), nil
	}, func() error {
		err := renew()
		tell(err)
		if err == nil {
			log.Info("the node's certificate is renewed", "node", o.Node)
		}
		return err
	})
}

// expired says that the server cannot renew the stored certificate any more: it
// was away, or the node was, for the last fifth of the certificate's life (73
// days of a year). Daemons run on.
func expired(o Options) error {
	cert, err := pki.StoredCertificate(o.Dir)
	if err != nil || !time.Now().After(cert.NotAfter) {
		return nil // what else is wrong is said by who needs it
	}
	return fmt.Errorf("the certificate of node %q expired on %s, so the server does not know the node any more; its daemons run on as they are: "+
		"'legion join LINE' on this host brings it back, or legion-agent started once with --token ('legion token create' prints LINE)",
		o.Node, cert.NotAfter.Format(time.DateOnly))
}

// comeBack gets a certificate in place of one that has expired, where the agent
// was given something to ask for it with: as the same node, which is why its
// pods run on.
func comeBack(ctx context.Context, o Options, expired error, log *slog.Logger) error {
	switch {
	case o.Bootstrap != "":
		return bootstrap(ctx, o, log)
	case o.Token != "":
		if err := join(ctx, o, log); err != nil {
			return fmt.Errorf("%w; the token that this agent has does not help: %w", expired, err)
		}
		return nil
	}
	return expired
}

// renewals renews when it is time to. A failure is tried again after a minute,
// then less and less often, up to every hour. The time is looked at each hour
// at least: the clock may be set, and the file be replaced.
func renewals(ctx context.Context, due func() (time.Time, error), renew func() error) {
	const least, most = time.Minute, time.Hour
	retry := least
	for {
		wait := most
		at, err := due()
		switch left := time.Until(at); {
		case err != nil:
		case left > 0:
			wait = min(left, most)
		case renew() == nil:
			retry = least
			continue
		default:
			wait, retry = retry, min(2*retry, most)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

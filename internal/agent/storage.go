package agent

import (
	"context"
	"time"

	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/volume"
)

// lookEvery is how often it is looked how much of the disk a pod with a limit
// takes, as the kubelet does it.
const lookEvery = 10 * time.Second

// Usage is how much the directories take together, in bytes.
func (d disk) Usage(ctx context.Context, dirs []string) (int64, error) {
	sum := int64(0)
	for _, dir := range dirs {
		n, err := volume.Usage(ctx, dir)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// limited says whether the pod has limits of what it takes of the disk.
func (p *pods) limited(r *record) bool {
	return r.pod != nil && r.host != nil && r.pod.DeletionTimestamp == nil && !r.done() && len(podspec.Quotas(r.pod, p.node, nil)) > 0
}

// measure looks, beside the loop, whether a pod takes more of the disk than it
// may; then it is evicted.
func (p *pods) measure(r *record, now time.Time) {
	switch {
	case r.measuring || !p.limited(r):
		return
	case r.measureAt.IsZero():
		r.measureAt = now.Add(lookEvery)
	}
	if now.Before(r.measureAt) {
		return
	}
	logs := map[string]string{}
	for i := range r.host.Services {
		logs[r.host.Services[i].Name] = r.host.Services[i].LogDir
	}
	quotas, uid, ctx := podspec.Quotas(r.pod, p.node, logs), r.uid, p.life
	r.measuring = true
	go func() {
		over := p.exceeded(ctx, quotas)
		p.post(ctx, func(ctx context.Context, now time.Time) {
			r := p.records[uid]
			if r == nil {
				return
			}
			r.measuring, r.measureAt = false, now.Add(lookEvery)
			if over != "" && p.limited(r) {
				r.evicted = over
				p.log.Warn("a pod takes more of the disk than it may, and is evicted", "pod", uid, "reason", over)
			}
			p.step(ctx, r, now)
		})
	}()
}

// exceeded is the message of the first limit that is exceeded; empty for none.
func (p *pods) exceeded(ctx context.Context, quotas []podspec.Quota) string {
	for _, q := range quotas {
		used, err := p.files.Usage(ctx, q.Dirs)
		if err != nil {
			p.log.Warn("cannot find out how much of the disk a pod takes", "directories", q.Dirs, "error", err)
		} else if used > q.Bytes {
			return q.Message
		}
	}
	return ""
}

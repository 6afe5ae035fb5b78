package main

import "github.com/spf13/cobra"

func (a *app) metrics() *cobra.Command {
	return &cobra.Command{
		Use: "metrics", Short: "Print the daemon's metrics, in the text format of Prometheus", Args: cobra.NoArgs,
		Long: `Print the daemon's metrics in the text format of Prometheus, or with --json as a list of
names, labels and values. None of them holds a payload, a person or a host. For a scraper
see telemetry.metrics in vault.yaml.`,
		Example: example("pvault metrics", "pvault metrics --json", "pvault metrics > pvault.prom"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := a.client()
			if err != nil {
				return err
			}
			defer client.Close()
			if a.json {
				list, err := client.Samples(cmd.Context())
				if err != nil {
					return err
				}
				return a.print(list, nil)
			}
			b, err := client.Metrics(cmd.Context())
			if err != nil {
				return err
			}
			_, err = a.out.Write(b)
			return err
		},
	}
}

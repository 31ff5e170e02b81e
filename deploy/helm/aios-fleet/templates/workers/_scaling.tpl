{{/* Scaling a pool by the seconds of work that wait for it, and by what its workers have in hand. */}}

{{/* The ids of a pool's models. */}}
{{- define "aios.modelIds" -}}
{{- $ids := list -}}
{{- range .models }}{{ $ids = append $ids .id }}{{ end -}}
{{- $ids | toJson -}}
{{- end -}}

{{/* What selects a pool's models in PromQL: dots and the like are an id's own. Takes (root, pool). */}}
{{- define "aios.seriesOf" -}}
{{- $ids := list -}}
{{- range .pool.models }}{{ $ids = append $ids (regexQuoteMeta .id | replace "\\" "\\\\") }}{{ end -}}
model=~{{ join "|" $ids | printf "\"%s\"" }}
{{- range $label, $value := .root.Values.prometheus.queryLabels }},{{ $label }}={{ tpl $value $.root | printf "%q" }}{{ end -}}
{{- end -}}

{{- define "aios.scalingBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies: [{type: Percent, value: 100, periodSeconds: 60}, {type: Pods, value: 2, periodSeconds: 60}]
scaleDown:
  stabilizationWindowSeconds: {{ .scaleDownSeconds }}
  policies: [{type: Pods, value: 1, periodSeconds: 60}]
{{- end -}}

{{/* Takes (root, name, pool). A pool may fall to 0 only where work for it waits meanwhile. */}}
{{- define "aios.checkScaling" -}}
{{- if not .pool.models }}{{ fail (printf "workerPools.%s.autoscaling: needs the pool's models" .name) }}{{ end -}}
{{- with .pool.autoscaling -}}
{{- if gt (int .minReplicas) (int .maxReplicas) }}{{ fail (printf "workerPools.%s.autoscaling: minReplicas is above maxReplicas" $.name) }}{{ end -}}
{{- if eq (int .minReplicas) 0 -}}
{{- if ne .kind "keda" }}{{ fail (printf "workerPools.%s.autoscaling: minReplicas 0 needs kind keda" $.name) }}{{ end -}}
{{- $settings := include "aios.settings" (dict "root" $.root "role" $.root.Values.api) | fromYaml -}}
{{- if lt (float64 (default 30 $settings.absent_grace_s)) 3600.0 }}{{ fail (printf "workerPools.%s.autoscaling: minReplicas 0 needs api.settings.absent_grace_s, the time that work waits for a pool at 0, of 3600 or more" $.name) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
